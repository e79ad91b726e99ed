# Sourced by the scripts of this repository, from its top: makes .venv from requirements.txt and the extras for users
# (once, and again when these change), enters it, and sets what every rank needs to know about this machine.
#   sets: gpus, cores     exports: DS_ACCELERATOR=cpu where there is no GPU

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
  echo "error: Python 3.10 or newer is needed, found $("$python" --version 2>&1). Set PYTHON to a newer one." >&2
  exit 1
}
wanted=$(cat requirements.txt requirements-contacts.txt requirements-plots.txt pyproject.toml | cksum)
if [ "$(cat .venv/complete 2>/dev/null)" != "$wanted" ]; then
  echo "making .venv and installing amplify_ds[all] (a minute or more)"
  "$python" -m venv .venv || {
    echo "error: .venv could not be made; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' || {
    echo "error: pip could not install amplify_ds[all] (see above); run the same command again to continue" >&2
    exit 1
  }
  echo "$wanted" >.venv/complete
fi
. .venv/bin/activate

gpus=$(python -c 'import torch; print(torch.cuda.device_count())') || exit 1
cores=$(nproc)
if [ "$gpus" = 0 ]; then export DS_ACCELERATOR=cpu; fi
