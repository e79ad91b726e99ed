"""Stopping a run so that the same command continues it: asked at any moment, done at the next step boundary.

    asked    SIGTERM or SIGUSR1 to any rank, or any text in RUN/.stop (written by launch/train.sh: the run directory is
             on the file system that all nodes share, and pdsh passes no signals on); "REASON of NAME" is for the ranks
             of the launch of that name alone
    ended    "end of NAME" in RUN/.stop: that launch has failed; what is left of it ends at once
    agreed   at a step boundary the ranks sum `requested()`, so that all of them stop at the same step
    done     checkpoint, RUN/stopped.json, exit code 75 on every rank

A handler only sets a flag: a collective inside it would deadlock. RUN/.stop is emptied, never removed, and read anew:
NFS shows a file's new content when it is opened, a new name up to a minute later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from amplify_ds.files import write_json
from amplify_ds.training import orphans

SAVED = 75  # exit code: saved, start the same command again (EX_TEMPFAIL of sysexits.h)
COMPLETE, STOPPED, STOP, END = "result.json", "stopped.json", ".stop", "end"
SECONDS_BETWEEN_LOOKS = 1.0

_reasons: list[str] = []


def listen() -> None:
    """From now on signals ask this rank to stop, and output that nobody reads any more does not end it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _signalled)
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)


def forget_earlier(run: Path) -> None:
    """What an earlier part of the run was asked, and said, when it stopped (by the rank that has opened the run)."""
    (run / STOPPED).unlink(missing_ok=True)
    (run / STOP).write_text("", encoding="utf-8")


def listen_to_file(run: Path) -> None:
    """RUN/.stop asks, too: one rank of each machine reads it. In a thread: slow files do not hold up the loop."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        threading.Thread(target=_read, args=(run / STOP,), daemon=True).start()


def requested() -> bool:
    """This rank was asked to stop. Costs nothing."""
    return bool(_reasons)


def write_stopped(run: Path, step: int, checkpoint: str | None) -> None:
    """Say that the run stopped on request after `step` steps, and what it continues from (rank 0, once saved).

    OSError if it cannot be written.
    """
    reason = _reasons[0] if _reasons else "asked on another rank"
    write_json(run / STOPPED, {"step": step, "checkpoint": checkpoint, "reason": reason})
    (run / STOP).write_text("", encoding="utf-8")


def _signalled(number: int, frame) -> None:
    orphans.signalled()
    _reasons.append(signal.Signals(number).name)


def _read(path: Path) -> None:
    while True:
        try:
            reason, _, launch = path.read_text(encoding="utf-8").strip().partition(" of ")
        except (OSError, ValueError):
            reason = launch = ""
        if reason and launch in ("", os.environ.get("AMPLIFY_LAUNCH")):
            if reason == END and launch:
                os._exit(orphans.ENDED_WITH_LAUNCHER)
            if not _reasons:
                _reasons.append(reason)
        time.sleep(SECONDS_BETWEEN_LOOKS)


class _Unbreakable:
    """A stream whose reader may go away: a closed terminal or ssh connection must not cost the checkpoint."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            pass

    def __getattr__(self, name):
        return getattr(self._stream, name)
