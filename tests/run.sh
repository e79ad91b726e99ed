#!/usr/bin/env bash
# The tests, in the environment that the quick start uses and requirements-dev.txt: bash tests/run.sh [--all] [pytest
# arguments]. Without --all: those that are not slow by nature, in a few minutes; continuous integration runs all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/environment.sh
# Other versions and other models that some tests compare with, each in a folder of its own beside the environment.
for list in tests/others/*.txt; do
  place=.venv/others/$(basename "$list" .txt)
  if ! cmp -s "$list" "$place/installed.txt"; then
    rm -rf "$place"
    python -m pip install --quiet --disable-pip-version-check --no-deps --target "$place" --requirement "$list" &&
      cp "$list" "$place/installed.txt" || rm -rf "$place" # its tests are skipped, or fail in continuous integration
  fi
done
export OMP_NUM_THREADS=$((cores > 3 ? cores / 2 : 1)) # of two test processes; more threads than cores wait for each other
words=(--numprocesses 2 --dist worksteal)
if [ "${1:-}" = --all ]; then
  shift
else
  echo "without the tests that are marked slow: bash tests/run.sh --all runs all"
  words+=(-m "not slow")
fi
exec python -m pytest "${words[@]}" "$@"
