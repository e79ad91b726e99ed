"""Commands of the repository as tests run them: from its top, their output captured.

`python` and `ranks_of` fork them from a process that has imported everything (forking.py): quick, and the same code.
`interpreter` starts Python anew, as a user does: for what happens at the start, and for other packages.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amplify_ds.network import free_port
from tests.support import forking
from tests.support.paths import ROOT

# Code that is a module or a file of the repository, named by the first argument, to be run after other code (-c).
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
    """The variables of one of so many ranks that share the cores which are this process's."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))  # others use theirs
    threads = str(max(1, cores // ranks))
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}


def run(*words, **options) -> subprocess.CompletedProcess:
    """Any program."""
    return subprocess.run([str(w) for w in words], cwd=ROOT, text=True, capture_output=True, timeout=600, **options)


def interpreter(*words, **options) -> subprocess.CompletedProcess:
    """Python, started anew."""
    return run(sys.executable, *words, **options)


def python(*words, env: dict[str, str] | None = None, cwd=ROOT) -> subprocess.CompletedProcess:
    """Python, forked."""
    return forking.run([sys.executable, *map(str, words)], dict(os.environ) if env is None else env, cwd)


def start(*words, env: dict[str, str] | None = None, cwd=ROOT) -> forking.Process:
    """The same, not waited for."""
    return forking.Process([sys.executable, *map(str, words)], dict(os.environ) if env is None else env, cwd)


def ranks_of(count: int, module: str, *words, **variables: str) -> subprocess.CompletedProcess:
    """So many ranks of a module, forked, with the variables that DeepSpeed's launcher sets.

    stdout and stderr hold what all of them say; the exit code is that of the first that fails.
    """
    shared = environment(count) | variables
    if count > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
        shared |= {"LOCAL_SIZE": str(count), "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    each = [shared | ({"RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}) for r in range(count)]
    return forking.ranks([[sys.executable, "-m", module, *map(str, words)]] * count, each)


def before_path(folder) -> str:
    """PYTHONPATH with this folder in front."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def other_packages(name: str) -> dict[str, str]:
    """The environment of an interpreter that finds the packages of tests/others/NAME.txt first.

    Skips the test where they are missing, except in continuous integration: there that is a failure. tests/run.sh
    installs them.
    """
    place = Path(os.environ.get("OTHER_PACKAGES", ROOT / ".venv/others")) / name
    if not place.is_dir():
        missing = f"the packages of tests/others/{name}.txt are not in {place}: bash tests/run.sh installs them"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    path = os.pathsep.join([str(place.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment(1) | {"PYTHONPATH": path}
