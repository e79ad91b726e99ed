#!/usr/bin/env bash
# The tests, in the environment that the quick start uses: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh
exec python -m pytest --numprocesses 2 --dist worksteal "$@"
