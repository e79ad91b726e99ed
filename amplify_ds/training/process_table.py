"""Processes on this machine, by psutil. Nothing is returned about one that has ended or may not be inspected."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import psutil

# Values of psutil.Process.status(), with the letters that ps shows.
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
    """A process's state, psutil.STATUS_…, and the id of its parent."""

    state: str
    parent: int

    def describe(self) -> str:
        return STATES.get(self.state, self.state)


def process_info(pid: int) -> Process | None:
    """Return the process, or None if it does not exist."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Process(process.status(), process.ppid())
    except _UNKNOWN:
        return None


def started(pid: int) -> float | None:
    """Return the seconds from boot to the start of a process; together with the pid they identify it.

    They do not depend on changes of the clock.
    """
    try:
        boot = psutil.boot_time()  # before create_time: psutil before 7.1 adds the boot time read last
        return round(psutil.Process(pid).create_time() - boot, 2)  # the kernel counts hundredths
    except _UNKNOWN:
        return None


def command_line(pid: int) -> str:
    """Return the command line of a process, "" if unknown."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except _UNKNOWN:
        return ""


def ranks_below(launcher: int) -> dict[int, int]:
    """Return {pid: rank} of the ranks that this launcher has started here. Slow: inspects all processes."""
    ranks = {}
    with suppress(*_UNKNOWN):
        for child in psutil.Process(launcher).children():
            with suppress(*_UNKNOWN):
                if rank := child.environ().get("RANK"):
                    ranks[child.pid] = int(rank)
    return ranks
