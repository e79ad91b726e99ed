"""What the kernel says of a process on this machine: /proc, read only. Without /proc nothing is known, and None."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STATES = {"T": "stopped", "t": "stopped by a debugger", "Z": "dead", "X": "dead", "D": "waiting for a disk or device"}


@dataclass(frozen=True)
class Process:
    state: str  # one letter, as ps shows it
    parent: int
    started: int  # clock ticks since boot: with the pid, a name that is never used again

    def describe(self) -> str:
        return f"{STATES.get(self.state, 'running or sleeping')} (state {self.state})"


def look_at(pid: int) -> Process | None:
    """None when there is no such process."""
    try:
        # The name before the last parenthesis may be any bytes.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return None
    return Process(fields[0], int(fields[1]), int(fields[19]))


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def ranks_below(launcher: int) -> dict[int, int]:
    """{pid: rank} of the ranks that this launcher runs here."""
    try:
        children = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_bytes().split()]
    except OSError:
        return {}
    return {pid: rank for pid in children if (rank := _rank_of(pid)) is not None}


def _rank_of(pid: int) -> int | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), None)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
