"""A rank ends when what started it is gone.

DeepSpeed's launcher does not take its ranks along when it is killed (SIGKILL), nor when its runner is sent SIGTERM:
they would train on unseen and keep the run's lock. So each rank watches its parent (launch.py), the runner above it,
and the launch script when that has put its process id into AMPLIFY_LAUNCHER_PID.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 1.0
ENDED_WITH_LAUNCHER = 143  # what a shell reports for SIGTERM


def end_with_launcher() -> None:
    """Start the watch, when this process is a rank that a launcher started."""
    if "LOCAL_RANK" not in os.environ:
        return
    parent = os.getppid()
    watched = [parent]
    try:
        above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
        if b"deepspeed" in Path(f"/proc/{above}/cmdline").read_bytes():
            watched.append(above)
    except OSError:  # no /proc: the parent alone is watched
        pass
    if script := os.environ.get("AMPLIFY_LAUNCHER_PID"):
        watched.append(int(script))
    threading.Thread(target=_watch, args=(parent, watched), daemon=True).start()


def _watch(parent: int, watched: list[int]) -> None:
    while os.getppid() == parent and all(_lives(pid) for pid in watched):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(ENDED_WITH_LAUNCHER)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
