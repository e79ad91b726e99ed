"""Run commands of the repository from its top directory and capture their output.

`python` and `ranks_of` fork the command from a process that has imported everything (forking.py), which is fast.
`interpreter` starts a new Python, as users do: for tests of the start itself, and for other packages.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amplify_ds.network import free_port
from tests.support import forking
from tests.support.paths import ROOT

# For `python -c`, after other code: runs the module or script named by the first argument.
AS_MAIN = """
import runpy, sys
sys.argv = sys.argv[1:]
if sys.argv[0].endswith(".py"):
    sys.path.insert(0, sys.argv[0].rpartition("/")[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def environment(ranks: int) -> dict[str, str]:
    """Return the environment of one of `ranks` ranks that share the cores of this process."""
    cores = len(os.sched_getaffinity(0)) // int(
        os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)
    )  # the other workers use the rest
    threads = str(max(1, cores // ranks))
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}


def run(*command, **options) -> subprocess.CompletedProcess:
    """Run any program."""
    return subprocess.run(
        [str(argument) for argument in command], cwd=ROOT, text=True, capture_output=True, timeout=600, **options
    )


def interpreter(*arguments, **options) -> subprocess.CompletedProcess:
    """Run a new Python."""
    return run(sys.executable, *arguments, **options)


def python(*arguments, env: dict[str, str] | None = None, cwd=ROOT) -> subprocess.CompletedProcess:
    """Run Python, forked."""
    return forking.run([sys.executable, *map(str, arguments)], dict(os.environ) if env is None else env, cwd)


def start(*arguments, env: dict[str, str] | None = None, cwd=ROOT) -> forking.Process:
    """Start Python, forked, without waiting for it."""
    return forking.Process([sys.executable, *map(str, arguments)], dict(os.environ) if env is None else env, cwd)


def ranks_of(count: int, module: str, *arguments, **variables: str) -> subprocess.CompletedProcess:
    """Run `count` ranks of a module, forked, with the variables that DeepSpeed's launcher sets.

    stdout and stderr hold the output of all ranks; the exit code is that of the first rank that fails.
    """
    shared = environment(count) | variables
    if count > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
        shared |= {"LOCAL_SIZE": str(count), "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    environments = [shared | ({"RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}) for r in range(count)]
    return forking.ranks([[sys.executable, "-m", module, *map(str, arguments)]] * count, environments)


def before_path(folder) -> str:
    """Return PYTHONPATH with `folder` in front."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def other_packages(name: str) -> dict[str, str]:
    """Return the environment of an interpreter that finds the packages of tests/others/NAME.txt first.

    If they are missing, the test is skipped, or fails in continuous integration. tests/run.sh installs them.
    """
    directory = Path(os.environ.get("OTHER_PACKAGES", ROOT / ".venv/others")) / name
    if not directory.is_dir():
        missing = f"the packages of tests/others/{name}.txt are not in {directory}: bash tests/run.sh installs them"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    path = os.pathsep.join([str(directory.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment(1) | {"PYTHONPATH": path}
