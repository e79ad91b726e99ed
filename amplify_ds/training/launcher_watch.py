"""A rank ends when what it cannot do without is gone: its launcher, or another rank beside it.

DeepSpeed's launcher does not take its ranks along when it is killed (SIGKILL), nor when its runner is sent SIGTERM:
they would train on unseen and keep the run's lock. So each rank watches its parent (launch.py), what started that one
(the runner, or the ssh server when it was pdsh on another node), and the scripts in AMPLIFY_LAUNCHER_PID. After a
signal that asks for a checkpoint the rank has a minute to leave by itself: SLURM signals all processes at once.

A rank that has lost another one can do nothing more together, and may wait in a collective for ever. launch.py sends
SIGTERM to what is left, but ranks take that as "save and stop" (stopping.py): it would kill them one by one, 30
seconds each. So a rank that misses another one of its machine ends by itself. Other machines: watchdog.py.
"""

from __future__ import annotations

import math
import os
import threading
import time

import psutil

from amplify_ds.errors import print_error
from amplify_ds.network import ranks_here
from amplify_ds.training.process_table import DEAD, command_line, look_at, ranks_below

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_SAVE = 60.0  # when the launcher is gone after a signal that asks for a checkpoint
SECONDS_FOR_LAUNCHER = 3.0  # it shall see the lost rank's exit code before ours
ENDED_WITH_LAUNCHER = 143  # what a shell reports for SIGTERM

_signalled = threading.Event()  # a signal has asked for a checkpoint
_met = threading.Event()
_finished = threading.Event()
_watch: _Watch | None = None


def end_with_launcher() -> None:
    """Start the watch, when this process is a rank that a launcher started."""
    global _watch
    if "LOCAL_RANK" in os.environ:
        _watch = _Watch()
        threading.Thread(target=_watch.look_on, daemon=True).start()


def met() -> None:
    """This rank has found the others. One that ended before that has said why itself, or the launcher does."""
    _met.set()


def finished() -> None:
    """Nothing is left to do together: from now on other ranks may end before this one."""
    _finished.set()


def lost(seconds: float = 1.0) -> dict[int, int]:
    """{pid: rank} of ranks on this machine that have ended before their time; one may take a moment to end."""
    deadline = time.monotonic() + seconds
    while _watch is not None and not (found := _watch.lost_ranks()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found if _watch is not None else {}


def signalled() -> None:
    """A signal has arrived. If it is launch.py's, because a rank is lost, this rank ends at once."""
    _signalled.set()
    if _watch is not None and _watch.lost_ranks() and not _finished.is_set():
        os._exit(ENDED_WITH_LAUNCHER)


class _Watch:
    def __init__(self):
        self.launcher = os.getppid()
        self.watched = [self.launcher, *_above(self.launcher)]
        self.watched += [int(pid) for pid in os.environ.get("AMPLIFY_LAUNCHER_PID", "").split()]
        self.count = ranks_here() or math.inf
        self.ranks = ranks_below(self.launcher)

    def look_on(self) -> None:
        while os.getppid() == self.launcher and all(psutil.pid_exists(pid) for pid in self.watched):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if self.lost_ranks() and not _finished.is_set():
                time.sleep(SECONDS_FOR_LAUNCHER)
                if not _finished.is_set():
                    self._say_which()
                    os._exit(ENDED_WITH_LAUNCHER)
        if _signalled.is_set():
            time.sleep(SECONDS_TO_SAVE)
        os._exit(ENDED_WITH_LAUNCHER)

    def lost_ranks(self) -> dict[int, int]:
        """Of those that have been seen. Of a launcher that is gone itself, none: look_on knows what to do then."""
        if len(self.ranks) < self.count:  # they start one after the other
            self.ranks = self.ranks | ranks_below(self.launcher)
        lost = {pid: rank for pid, rank in self.ranks.items() if not self._runs(pid)}
        return lost if os.getppid() == self.launcher else {}

    def _runs(self, pid: int) -> bool:
        process = look_at(pid)
        return process is not None and process.state not in DEAD and process.parent == self.launcher

    def _say_which(self) -> None:
        lost = self.lost_ranks()
        left = [rank for pid, rank in self.ranks.items() if pid not in lost]
        if _met.is_set() and int(os.environ["RANK"]) == min(left, default=-1):
            gone = ", ".join(f"rank {rank} (process {pid})" for pid, rank in lost.items())
            print_error(f"error: {gone} on {os.uname().nodename} has ended; the job ends with it")


def _above(launcher: int) -> list[int]:
    """The runner that started launch.py; on another node the shell and the ssh server in between."""
    found, process = [], look_at(launcher)
    while process is not None and process.parent > 1:
        words = command_line(process.parent)
        if "deepspeed" not in words and not words.startswith("sshd"):
            break
        found.append(process.parent)
        if "deepspeed.launcher" not in words:  # the runner, or the ssh server: what is above goes its own way
            break
        process = look_at(process.parent)
    return found
