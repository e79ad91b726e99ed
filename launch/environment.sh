# Sourced by the scripts of this repository, from its top directory: creates .venv with amplify_ds[all], again if the
# requirements have changed, activates it, and counts the devices of this machine.
#   sets: gpus, cores     exports: DS_ACCELERATOR=cpu if there is no GPU

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "error: Python 3.10 or newer is required, found $("$python" --version 2>&1). Set PYTHON to a newer one." >&2
  exit 1
}
requirements=$(cat requirements.txt requirements-contacts.txt requirements-plots.txt pyproject.toml | cksum)
if [ "$(cat .venv/complete 2>/dev/null)" != "$requirements" ]; then
  echo "creating .venv and installing amplify_ds[all] (a minute or more)"
  "$python" -m venv .venv || {
    echo "error: .venv could not be created; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' || {
    echo "error: pip could not install amplify_ds[all] (see above); run the same command again to continue" >&2
    exit 1
  }
  echo "$requirements" >.venv/complete
fi
. .venv/bin/activate

gpus=$(python -c 'import torch; print(torch.cuda.device_count())') || exit 1
cores=$(nproc)
if [ "$gpus" = 0 ]; then export DS_ACCELERATOR=cpu; fi
