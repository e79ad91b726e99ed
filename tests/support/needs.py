"""Marks for tests that need more than the Python environment: they are skipped if it is missing, and fail under CI."""

import importlib.util
import os
import shutil
import subprocess

import pytest

from tests.support.paths import ROOT

# {program: the apt package that has it}
PACKAGES = {"mmseqs": "mmseqs2", "g++": "g++", "sshd": "openssh-server", "pdsh": "pdsh", "ip": "iproute2"}
PACKAGES |= {"slurmctld": "slurm-wlm", "munged": "munge"}
SYSTEM_PATH = "/usr/sbin:/sbin"  # directories of sshd, slurmctld and ip


def needs(*programs: str):
    missing = [name for name in programs if not shutil.which(name, path=f"{os.environ['PATH']}:{SYSTEM_PATH}")]
    packages = " ".join(PACKAGES[name] for name in missing)
    return _skip_unless(not missing, f"not installed: {', '.join(missing)}; apt install {packages}")


def needs_tools(*modules: str):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return _skip_unless(
        not missing, f"not installed: {', '.join(missing)}; pip install --requirement requirements-dev.txt"
    )


def _skip_unless(available: bool, reason: str):
    return pytest.mark.skipif(not available and not os.environ.get("CI"), reason=reason)


def _may_make_namespaces() -> bool:
    command = ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


needs_mmseqs = needs("mmseqs")
needs_compiler = needs("g++")
needs_nodes = needs("sshd", "pdsh")
needs_slurm = needs("slurmctld", "munged")
needs_ip = needs("ip")
needs_namespaces = pytest.mark.skipif(  # also under CI: this is a permission, not a package
    not _may_make_namespaces(), reason="no permission to create network namespaces; run as root"
)
needs_environment = _skip_unless(
    (ROOT / ".venv/complete").exists(), "the environment of the launch scripts is missing; run tests/run.sh"
)
