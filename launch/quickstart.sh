#!/usr/bin/env bash
# Train a model on the bundled proteins and export it for Hugging Face: environment, shards, pretraining, plots, export.
# Run it again after an interruption or to show the results: completed stages are reused.
#   bash launch/quickstart.sh                            writes to runs/quickstart
#   bash launch/quickstart.sh DIR                        writes to DIR
#   bash launch/quickstart.sh DIR --training.steps 50    passes settings to amplify_ds.train
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  -*) echo "error: the first argument must be a directory, not $1; see bash launch/quickstart.sh --help" >&2; exit 2 ;;
esac
directory=${1:-runs/quickstart}
shift $(($# > 0))
stage() { printf '\n== %s\n' "$*"; }
began=$SECONDS

stage "1/7 environment"
. launch/environment.sh
echo ".venv is ready: $(python --version), $(python -c 'import torch; print("torch", torch.__version__)'), $gpus GPUs, $cores cores"

examples=data_prep/example
shape="--max-length 512 --row-tokens 512"

stage "2/7 shards from the bundled proteins (clean, tokenize, pack)"
python data_prep/build_shards.py --input $examples/validation.fasta.gz --output "$directory"/validation $shape
python data_prep/build_shards.py --input $examples/train.fasta.gz --exclude $examples/validation.fasta.gz \
  --output "$directory"/train $shape

stage "3/7 pretraining: recipe tiny, DeepSpeed ZeRO stage 1"
# One rank per GPU; without GPUs, one per core, at most 8. The batch is the multiple of the ranks nearest to 8 rows.
ranks=$((gpus > 0 ? gpus : cores < 8 ? cores : 8))
rows=$(((8 + ranks / 2) / ranks))
if ((rows == 0)); then rows=1; fi
echo "$ranks ranks"
AMPLIFY_LAUNCHER_PID=$$ bash launch/train.sh --ranks "$ranks" -- --recipe tiny --deepspeed_config ds_configs/zero1.json \
  --training.micro_batch_rows $rows --training.global_batch_tokens $((512 * rows * ranks)) \
  --training.steps 1000 --optimizer.decay_steps 1000 --evaluation.every 100 \
  --data.train "$directory"/train --data.validation "$directory"/validation --output "$directory"/run "$@"

stage "4/7 validation of the last checkpoint, in a new process"
python -m amplify_ds.evaluate --model "$directory"/run --data "$directory"/validation

stage "5/7 plots from the TensorBoard events"
python -m amplify_ds.plot "$directory"/run

stage "6/7 export to a Hugging Face folder"
checkpoint=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["checkpoint"])' "$directory"/run/result.json)
if [ ! -e "$directory"/export ]; then
  python -m amplify_ds.export "$directory"/run "$directory"/export
elif cmp -s "$checkpoint"/model.safetensors "$directory"/export/model.safetensors; then
  echo "$directory/export has the weights of $checkpoint: reused"
else
  echo "error: $directory/export does not have the weights of $checkpoint; remove it and run the same command again" >&2
  exit 1
fi

stage "7/7 loading the export without amplify_ds"
python launch/try_export.py "$directory"/export

python launch/summary.py "$directory" $((SECONDS - began))
