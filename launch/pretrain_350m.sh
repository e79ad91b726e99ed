#!/usr/bin/env bash
# Pretrain AMPLIFY 350M as published: amplify_ds/recipes/350M.yaml holds every number. Meant for 32 or 16 H100s.
# 160 rows of 8,192 tokens are a step; five at once are a micro batch, so any power of two up to 32 GPUs shares them.
#   bash launch/pretrain_350m.sh --hostfile hostfile           all machines of the file, see launch/hostfile.example
#   bash launch/pretrain_350m.sh                               every GPU of this machine; one will do, and take longer
#   bash launch/pretrain_350m.sh --output DIR --optimizer.lr 5e-4 …         any option of amplify_ds.train wins over those here
#   bash launch/pretrain_350m.sh --ranks 2 --training.global_batch_tokens 16384 --training.micro_batch_rows 1 \
#     --training.activation_checkpointing true --training.steps 5 --output runs/try     a try-out on two CPU cores, slow
# Shards: shards/train and shards/validation, with uniprot, scop and oas in each (docs/cluster.md), or --data.train
# and --data.validation. Further options of launch/train.sh stand before a --. Exit codes are those of launch/train.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/pretrain_options.sh

exec bash launch/train.sh "${launcher[@]}" -- --recipe 350M --deepspeed_config ds_configs/zero2_overlap.json \
  --training.micro_batch_rows 5 "${data[@]}" --output runs/350M "$@"
