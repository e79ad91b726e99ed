"""Stopping a run so that the same command continues it: asked at any moment, done at the next step boundary.

    asked    SIGTERM or SIGUSR1 to any rank, or a text in RUN/.stop, which every rank sees: the run directory is on the
             file system that all nodes share, while pdsh and srun pass no signals on to ranks alone
    agreed   at a step boundary the ranks sum `requested()`, so that all of them stop at the same step
    done     checkpoint, RUN/stopped.json, exit code 75 on every rank

RUN/.stop holds one of
    REASON of NAME     stop the launch of that name (AMPLIFY_LAUNCH), also if it is still starting
    end CODE of NAME   that launch has failed: what is left of it exits with CODE at once
    any other text     from a user: stop the run; forgotten when the run starts again

A handler only sets a flag: a collective inside it would deadlock. RUN/.stop is emptied, never removed, and read anew:
NFS shows a file's new content when it is opened, a new name up to a minute later.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from amplify_ds.files import write_json
from amplify_ds.training import launcher_watch

SAVED = 75  # exit code: saved, start the same command again (EX_TEMPFAIL of sysexits.h)
LOST = 69  # exit code: another rank, or its machine, was lost (EX_UNAVAILABLE of sysexits.h)
COMPLETE, STOPPED, STOP, END = "result.json", "stopped.json", ".stop", "end"
SECONDS_BETWEEN_LOOKS = 1.0

_reasons: list[str] = []
_opened = threading.Event()  # the run directory is this launch's; before, a text for any launch is an earlier one's


def listen() -> None:
    """From now on signals ask this rank to stop, and output that nobody reads any more does not end it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _signalled)
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)


def forget_earlier(run: Path) -> None:
    """Remove what earlier launches were asked, and said when they stopped (by the rank that has opened the run)."""
    (run / STOPPED).unlink(missing_ok=True)
    launch = _request(run / STOP)[1]
    if not launch or launch != os.environ.get("AMPLIFY_LAUNCH"):
        (run / STOP).write_text("", encoding="utf-8")


def opened() -> None:
    """The run is this launch's, and what was asked before is forgotten: from now on texts for any launch count."""
    _opened.set()


def listen_to_file(run: Path) -> None:
    """Follow RUN/.stop, on one rank of each machine, in a thread: slow files do not hold up the loop."""
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
    launcher_watch.signalled()
    _reasons.append(signal.Signals(number).name)


def _read(path: Path) -> None:
    while True:
        reason, launch = _request(path)
        named = bool(launch) and launch == os.environ.get("AMPLIFY_LAUNCH")
        if named and (end := re.fullmatch(rf"{END} (\d+)", reason)):
            os._exit(int(end[1]) % 256 or 1)
        if reason and not _reasons and (named or (not launch and _opened.is_set())):
            _reasons.append(reason)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _request(path: Path) -> tuple[str, str]:
    """(what is asked, the launch that it names) of a stop file; empty where nothing is said."""
    try:
        reason, _, launch = path.read_text(encoding="utf-8").strip().partition(" of ")
    except (OSError, ValueError):
        return "", ""
    return reason, launch


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
