#!/usr/bin/env bash
# Train under DeepSpeed's launcher; stop and resume without losing a step: bash launch/train.sh --help
# Creates the environment (launch/environment.sh) and runs amplify_ds/launch.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'echo "stopped before training had begun; the same command starts it" >&2; exit 75' INT TERM USR1 HUP
. launch/environment.sh
export GPUS_HERE=$gpus
exec python -m amplify_ds.launch "$@"
