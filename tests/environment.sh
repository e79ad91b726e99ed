# Sourced by test scripts from the top directory: sets up the environment of launch/environment.sh and installs
# requirements-dev.txt in it (again when that file changes).
. launch/environment.sh
if ! cmp -s requirements-dev.txt .venv/complete-dev; then
  echo "installing requirements-dev.txt"
  python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt || {
    echo "error: pip could not install requirements-dev.txt (see above); run the same command again to continue" >&2
    exit 1
  }
  cp requirements-dev.txt .venv/complete-dev
fi
