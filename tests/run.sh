#!/usr/bin/env bash
# Run the tests in the environment of the quick start with requirements-dev.txt: bash tests/run.sh [--all] [pytest
# arguments]. Without --all, tests marked slow are left out; continuous integration runs all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tests/environment.sh
# Other library versions and models that some tests compare with, each in its own directory.
for list in tests/others/*.txt; do
  directory=.venv/others/$(basename "$list" .txt)
  if ! cmp -s "$list" "$directory/installed.txt"; then
    rm -rf "$directory"
    python -m pip install --quiet --disable-pip-version-check --no-deps --target "$directory" --requirement "$list" &&
      cp "$list" "$directory/installed.txt" || rm -rf "$directory" # without it, its tests are skipped, or fail in continuous integration
  fi
done
export OMP_NUM_THREADS=$((cores > 3 ? cores / 2 : 1)) # two test processes share the cores
arguments=(--numprocesses 2 --dist worksteal)
if [ "${1:-}" = --all ]; then
  shift
else
  echo "skipping the tests marked slow; bash tests/run.sh --all runs all tests"
  arguments+=(-m "not slow")
fi
exec python -m pytest "${arguments[@]}" "$@"
