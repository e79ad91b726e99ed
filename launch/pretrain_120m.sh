#!/usr/bin/env bash
# Pretrain AMPLIFY 120M as published, with the settings of amplify_ds/recipes/120M.yaml. Meant for 16 or 32 H100s.
# A step reads 160 rows of 8,192 tokens in micro batches of five rows: any power of two up to 32 GPUs divides them.
#   bash launch/pretrain_120m.sh --hostfile hostfile           all machines of the file, see launch/hostfile.example
#   bash launch/pretrain_120m.sh                               all GPUs of this machine; one is enough, but slower
#   bash launch/pretrain_120m.sh --output DIR --optimizer.lr 5e-4 …         options of amplify_ds.train override these
#   bash launch/pretrain_120m.sh --ranks 2 --training.global_batch_tokens 16384 --training.micro_batch_rows 1 \
#     --training.activation_checkpointing true --training.steps 5 --output runs/try     a trial on two CPU cores, slow
# Reads uniprot, scop and oas in shards/train and shards/validation (docs/cluster.md), unless --data.train is given. Other
# options of launch/train.sh come before a --. The exit codes are those of launch/train.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/pretrain_options.sh

exec bash launch/train.sh "${launcher[@]}" -- --recipe 120M --deepspeed_config ds_configs/zero2_overlap.json \
  --training.micro_batch_rows 5 "${data[@]}" --output runs/120M "$@"
