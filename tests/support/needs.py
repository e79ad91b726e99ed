"""What some tests need beside the Python environment. Without it they are skipped, by its name; under CI they fail."""

import importlib.util
import os
import shutil
import subprocess

import pytest

from tests.support.paths import ROOT

# Programs, and what apt installs them with.
PACKAGES = {"mmseqs": "mmseqs2", "g++": "g++", "sshd": "openssh-server", "pdsh": "pdsh", "ip": "iproute2"}
PACKAGES |= {"slurmctld": "slurm-wlm", "munged": "munge"}
BEYOND_USERS = "/usr/sbin:/sbin"  # where sshd and ip are


def needs(*programs: str):
    missing = [name for name in programs if not shutil.which(name, path=f"{os.environ['PATH']}:{BEYOND_USERS}")]
    packages = " ".join(PACKAGES[name] for name in missing)
    return _unless(not missing, f"not installed here: {', '.join(missing)}; apt install {packages}")


def needs_tools(*modules: str):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return _unless(not missing, f"not installed: {', '.join(missing)}; pip install --requirement requirements-dev.txt")


def _unless(there: bool, reason: str):
    return pytest.mark.skipif(not there and not os.environ.get("CI"), reason=reason)


def _may_make_namespaces() -> bool:
    words = ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


needs_mmseqs = needs("mmseqs")
needs_compiler = needs("g++")
needs_nodes = needs("sshd", "pdsh")
needs_slurm = needs("slurmctld", "munged")
needs_ip = needs("ip")
needs_namespaces = pytest.mark.skipif(  # under CI as well: this is no package, but a right
    not _may_make_namespaces(), reason="network namespaces cannot be made here; be root"
)
needs_environment = _unless(
    (ROOT / ".venv/complete").exists(), "the launch script's own environment is not made; use tests/run.sh"
)
