#!/usr/bin/env bash
# Check every machine of a hostfile before a run, within a minute. bash launch/preflight.sh --help says what and how.
#   bash launch/preflight.sh HOSTFILE                              the machines alone
#   bash launch/preflight.sh HOSTFILE --recipe 120M … --output RUN … and whether they can train this
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
given=${DS_ACCELERATOR:-}
. launch/environment.sh
# That this machine has no GPU says nothing of the others.
if [ -z "$given" ]; then unset DS_ACCELERATOR; fi
exec python -m amplify_ds.preflight "$@"
