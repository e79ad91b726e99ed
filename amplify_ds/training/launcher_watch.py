"""End a rank when its launcher, or another rank on the same machine, has ended.

DeepSpeed's launcher does not end its ranks when it is killed (SIGKILL), or when its runner receives SIGTERM: they would
continue unnoticed and keep the run's lock. So each rank watches its parent (launch.py), the parent of that (the runner,
or the ssh server if pdsh started it on another node), and the scripts in AMPLIFY_LAUNCHER_PID. After a stop request the
rank has a minute to exit by itself, because SLURM signals all processes at once.

After another rank is lost, a rank cannot do any collective work, and may wait in a collective forever. launch.py sends
SIGTERM to the remaining ranks, which they take as a stop request (stopping.py); it would kill them one by one, after 30
seconds each. So a rank that misses another one on its machine ends by itself. For other machines see watchdog.py.
"""

from __future__ import annotations

import math
import os
import threading
import time

import psutil

from amplify_ds.errors import print_error
from amplify_ds.network import ranks_here
from amplify_ds.training.process_table import DEAD, command_line, process_info, ranks_below

SECONDS_BETWEEN_POLLS = 1.0
SECONDS_TO_SAVE = 60.0  # for a rank that has a stop request when its launcher ends
SECONDS_FOR_LAUNCHER = 3.0  # so that it sees the lost rank's exit code before this rank's
ENDED_WITH_LAUNCHER = 143  # the exit code that a shell reports for SIGTERM

_signalled = threading.Event()  # a signal has requested a stop
_met = threading.Event()
_finished = threading.Event()
_watch: _Watch | None = None


def end_with_launcher() -> None:
    """Start the watch if this process is a rank that a launcher started."""
    global _watch
    if "LOCAL_RANK" in os.environ:
        _watch = _Watch()
        threading.Thread(target=_watch.run, daemon=True).start()


def met() -> None:
    """This rank has found the others. Ranks lost before are not reported here: they or the launcher print an error."""
    _met.set()


def finished() -> None:
    """This rank no longer needs the others: from now on they may end before it."""
    _finished.set()


def lost(seconds: float = 1.0) -> dict[int, int]:
    """Return {pid: rank} of the ranks on this machine that have ended too early; waits up to `seconds` for one."""
    if _watch is None:
        return {}
    deadline = time.monotonic() + seconds
    while not (ranks := _watch.lost_ranks()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return ranks


def signalled() -> None:
    """A signal has arrived. If launch.py sent it because a rank is lost, this rank exits at once."""
    _signalled.set()
    if _watch is not None and _watch.lost_ranks() and not _finished.is_set():
        os._exit(ENDED_WITH_LAUNCHER)


class _Watch:
    def __init__(self):
        self.launcher = os.getppid()
        self.watched = [self.launcher, *_ancestors(self.launcher)]
        self.watched += [int(pid) for pid in os.environ.get("AMPLIFY_LAUNCHER_PID", "").split()]
        self.count = ranks_here() or math.inf
        self.ranks = ranks_below(self.launcher)

    def run(self) -> None:
        """Poll until the launcher or a rank is lost, then end this process."""
        while os.getppid() == self.launcher and all(psutil.pid_exists(pid) for pid in self.watched):
            time.sleep(SECONDS_BETWEEN_POLLS)
            if self.lost_ranks() and not _finished.is_set():
                time.sleep(SECONDS_FOR_LAUNCHER)
                if not _finished.is_set():
                    self._print_lost()
                    os._exit(ENDED_WITH_LAUNCHER)
        if _signalled.is_set():
            time.sleep(SECONDS_TO_SAVE)
        os._exit(ENDED_WITH_LAUNCHER)

    def lost_ranks(self) -> dict[int, int]:
        """Return {pid: rank} of the known ranks that have ended; {} if the launcher has ended too, see `run`."""
        if len(self.ranks) < self.count:  # they start one after the other
            self.ranks = self.ranks | ranks_below(self.launcher)
        lost = {pid: rank for pid, rank in self.ranks.items() if not self._is_running(pid)}
        return lost if os.getppid() == self.launcher else {}

    def _is_running(self, pid: int) -> bool:
        process = process_info(pid)
        return process is not None and process.state not in DEAD and process.parent == self.launcher

    def _print_lost(self) -> None:
        """Print which ranks have ended, on the lowest remaining rank."""
        lost = self.lost_ranks()
        remaining = [rank for pid, rank in self.ranks.items() if pid not in lost]
        if _met.is_set() and int(os.environ["RANK"]) == min(remaining, default=-1):
            names = ", ".join(f"rank {rank} (process {pid})" for pid, rank in lost.items())
            print_error(f"error: {names} on {os.uname().nodename} has ended; the job ends with it")


def _ancestors(launcher: int) -> list[int]:
    """Return the ids of the runner that started launch.py, or on another node of the shell and the ssh server."""
    ancestors, process = [], process_info(launcher)
    while process is not None and process.parent > 1:
        command = command_line(process.parent)
        if "deepspeed" not in command and not command.startswith("sshd"):
            break
        ancestors.append(process.parent)
        if "deepspeed.launcher" not in command:  # the runner or the ssh server, whose parents may end earlier
            break
        process = process_info(process.parent)
    return ancestors
