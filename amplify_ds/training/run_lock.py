"""The lock of a run directory: one job at a time, even if jobs run on different machines.

Rank 0 locks RUN/.lock and writes its job, machine and process into it. Some file systems keep locks on one machine only
(Lustre without -o flock, some NFS servers), so a run also counts as locked while rank 0 of a job on another machine
writes its rank file (watchdog.py), which changes every few seconds.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from amplify_ds.errors import AmplifyError
from amplify_ds.files import lock
from amplify_ds.training import rank_files
from amplify_ds.training.watchdog import FINISHED, LONGEST_BEAT

LOCK = ".lock"
SECONDS_TO_WAIT = 5.0  # for killed processes, which may take a moment to end
SECONDS_AFTER_RESTART = 120.0  # for the ranks of the previous start, perhaps on a node that was lost
SECONDS_OF_SILENCE = 3 * LONGEST_BEAT  # a rank that has written nothing for this time counts as dead


def acquire(run: Path) -> IO[str]:
    """Return the lock of a run directory, to be kept open as long as the run writes.

    Raises AmplifyError with the job, machine and time of the current holder.
    """
    restarted = int(os.environ.get("AMPLIFY_ATTEMPT", 0)) > 0
    deadline = time.monotonic() + (SECONDS_AFTER_RESTART if restarted else SECONDS_TO_WAIT)
    file = lock(run / LOCK, deadline - time.monotonic())
    if file is None:
        raise AmplifyError(_taken(run))
    while _writes_elsewhere(run):
        if time.monotonic() > deadline:
            file.close()
            raise AmplifyError(_taken(run))
    content = {"host": socket.gethostname(), "process": os.getpid(), "job": job_name(), "since": _now()}
    file.truncate(0)
    file.write(json.dumps(content))
    file.flush()
    return file


def job_name(environment: Mapping[str, str] = os.environ) -> str:
    """Return the name by which the user knows this job: "SLURM job N", or "" without SLURM."""
    number = environment.get("SLURM_JOB_ID", "")
    return f"SLURM job {number}" if number else ""


def _writes_elsewhere(run: Path) -> bool:
    """Return whether rank 0 of a job on another machine writes its rank file. Takes up to SECONDS_OF_SILENCE."""
    first = rank_files.read(run, 0)
    if not first or first.get("host") == socket.gethostname() or first.get("phase") == FINISHED:
        return False
    deadline = time.monotonic() + SECONDS_OF_SILENCE
    while time.monotonic() < deadline:
        time.sleep(LONGEST_BEAT / 10)
        last = rank_files.read(run, 0)
        if last.get("beat") != first.get("beat"):
            return last.get("phase") != FINISHED
    return False


def _holder(run: Path) -> dict[str, object]:
    try:
        return dict(json.loads((run / LOCK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _taken(run: Path) -> str:
    """Return the error message about the job that holds the lock."""
    holder = _holder(run)
    details = [str(holder.get("job") or ""), f"process {holder.get('process')} on {holder.get('host')}"]
    who = f": {', '.join(filter(None, details))}, since {holder.get('since')}" if holder else ""
    return f"{run}: another process is training this run{who}. Wait for it, or end it first."


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")
