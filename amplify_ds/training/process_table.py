"""What psutil says of a process on this machine. Of one that has ended, or may not be looked at: nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil

# What psutil.Process.status() says, with the letter that ps shows.
STATES = {
    psutil.STATUS_RUNNING: "running or sleeping (state R)",
    psutil.STATUS_SLEEPING: "running or sleeping (state S)",
    psutil.STATUS_IDLE: "running or sleeping (state I)",
    psutil.STATUS_STOPPED: "stopped (state T)",
    psutil.STATUS_TRACING_STOP: "stopped by a debugger (state t)",
    psutil.STATUS_ZOMBIE: "dead (state Z)",
    psutil.STATUS_DEAD: "dead (state X)",
    psutil.STATUS_DISK_SLEEP: "waiting for a disk or device (state D)",
}
DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_UNKNOWN = (psutil.Error, OSError, RuntimeError)  # the latter two where /proc is missing


@dataclass(frozen=True)
class Process:
    state: str  # psutil.STATUS_...
    parent: int

    def describe(self) -> str:
        return STATES.get(self.state, self.state)


def look_at(pid: int) -> Process | None:
    """None when there is no such process."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Process(process.status(), process.ppid())
    except _UNKNOWN:
        return None


def started(pid: int) -> float | None:
    """Seconds from boot to the start, whatever the clock does: with the pid, a name that is never used again."""
    try:
        boot = psutil.boot_time()  # first: psutil before 7.1 adds the one that it was asked for last
        return round(psutil.Process(pid).create_time() - boot, 2)  # the kernel counts in hundredths
    except _UNKNOWN:
        return None


def command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except _UNKNOWN:
        return ""


def ranks_below(launcher: int) -> dict[int, int]:
    """{pid: rank} of the ranks that this launcher runs here. Goes through all processes of the machine."""
    found = {}
    with suppress(*_UNKNOWN):
        for child in psutil.Process(launcher).children():
            with suppress(*_UNKNOWN):
                if rank := child.environ().get("RANK"):
                    found[child.pid] = int(rank)
    return found
