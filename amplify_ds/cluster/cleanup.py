"""End what a launch has left on this machine: `python -m amplify_ds.cluster.cleanup NAME`.

When an ssh connection ends, the processes that it started go on. Ranks notice and end themselves (launcher_watch.py);
one that is stopped, or waits for a device or a disk, cannot. SLURM ends the processes of a step by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress

import psutil

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.remote import python_command, run_on_all

SECONDS = 10.0  # for a machine that may be lost


def end_on(hosts: Iterable[Host], launch: str) -> None:
    """Kill the processes of a launch on all these machines, as far as they can be reached."""
    run_on_all(hosts, python_command(__name__, launch), SECONDS)


def end_here(launch: str) -> None:
    """Kill the processes of this user on this machine whose environment has AMPLIFY_LAUNCH=`launch`."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get("AMPLIFY_LAUNCH") == launch:
                process.kill()


if __name__ == "__main__":
    end_here(sys.argv[1])
