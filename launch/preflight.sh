#!/usr/bin/env bash
# Check every machine of a hostfile before a run, within a minute. See bash launch/preflight.sh --help.
#   bash launch/preflight.sh HOSTFILE                                  the machines alone
#   bash launch/preflight.sh HOSTFILE --recipe 120M … --output RUN     the machines for this run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
given=${DS_ACCELERATOR:-}
. launch/environment.sh
# The other machines may have GPUs even if this one has none.
if [ -z "$given" ]; then unset DS_ACCELERATOR; fi
exec python -m amplify_ds.preflight "$@"
