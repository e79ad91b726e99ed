#!/usr/bin/env bash
# From bundled real proteins to a trained model that Hugging Face can load: environment, shards, pretraining, plots,
# export. Run it again after an interruption, or to see the result: what is complete is reused.
#   bash launch/quickstart.sh                            everything lands in runs/quickstart
#   bash launch/quickstart.sh DIR                        … in DIR
#   bash launch/quickstart.sh DIR --training.steps 50    … with settings of amplify_ds.train
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  -h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  -*) echo "error: $1 stands where a directory is expected; see bash launch/quickstart.sh --help" >&2; exit 2 ;;
esac
place=${1:-runs/quickstart}
shift $(($# > 0))
stage() { printf '\n== %s\n' "$*"; }
began=$SECONDS

stage "1/7 environment"
. launch/environment.sh
echo ".venv is ready: $(python --version), $(python -c 'import torch; print("torch", torch.__version__)'), $gpus GPUs, $cores cores"

examples=data_prep/example
shape="--max-length 512 --row-tokens 512"

stage "2/7 real proteins -> shards (clean, tokenize, pack)"
python data_prep/build_shards.py --input $examples/validation.fasta.gz --output "$place"/validation $shape
python data_prep/build_shards.py --input $examples/train.fasta.gz --exclude $examples/validation.fasta.gz \
  --output "$place"/train $shape

stage "3/7 pretraining: recipe tiny, DeepSpeed ZeRO stage 1"
# Every GPU; without one, a rank a core up to 8. The batch is the multiple of the ranks that is nearest to 8 rows of 512.
ranks=$((gpus > 0 ? gpus : cores < 8 ? cores : 8))
share=$(((8 + ranks / 2) / ranks))
if ((share == 0)); then share=1; fi
echo "$ranks ranks"
AMPLIFY_LAUNCHER_PID=$$ bash launch/train.sh --ranks "$ranks" -- --recipe tiny --deepspeed_config ds_configs/zero1.json \
  --training.micro_batch_rows $share --training.global_batch_tokens $((512 * share * ranks)) \
  --training.steps 1000 --optimizer.decay_steps 1000 --evaluation.every 100 \
  --data.train "$place"/train --data.validation "$place"/validation --output "$place"/run "$@"

stage "4/7 validation of the last checkpoint, in a process of its own"
python -m amplify_ds.evaluate --model "$place"/run --data "$place"/validation

stage "5/7 plots from the TensorBoard events"
python -m amplify_ds.plot "$place"/run

stage "6/7 export to a Hugging Face folder"
checkpoint=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["checkpoint"])' "$place"/run/result.json)
if [ ! -e "$place"/export ]; then
  python -m amplify_ds.export "$place"/run "$place"/export
elif cmp -s "$checkpoint"/model.safetensors "$place"/export/model.safetensors; then
  echo "$place/export holds the weights of $checkpoint: reused"
else
  echo "error: $place/export holds other weights than $checkpoint; remove it and run this again" >&2
  exit 1
fi

stage "7/7 the export, loaded by a process that cannot import amplify_ds"
python launch/try_export.py "$place"/export

python launch/summary.py "$place" $((SECONDS - began))
