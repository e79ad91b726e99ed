"""Stop requests: accepted at any time, carried out at the next step boundary, such that the same command continues.

    request     SIGTERM or SIGUSR1 to any rank, or a text in RUN/.stop. Every rank sees the file, because all nodes
                share the run directory; pdsh and srun cannot signal the ranks alone
    agreement   at a step boundary the ranks sum `requested()`, so all of them stop at the same step
    stop        checkpoint, RUN/stopped.json, exit code 75 on every rank

RUN/.stop contains one of
    REASON of NAME     stop the launch of that name (AMPLIFY_LAUNCH), even if it is still starting
    end CODE of NAME   that launch has failed: its remaining ranks exit with CODE at once
    any other text     from a user: stop the run; forgotten when the run starts again

A handler only sets a flag, because a collective inside it would deadlock. RUN/.stop is emptied, never removed, and
opened again for every read: NFS shows a file's new content when it is opened, but a new name up to a minute later.
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
SECONDS_BETWEEN_POLLS = 1.0

_reasons: list[str] = []
_opened = threading.Event()  # this launch has opened the run; before, texts without a name are for earlier launches


def listen() -> None:
    """Handle signals as stop requests, and ignore errors when standard output and error have lost their reader."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _signalled)
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)


def forget_earlier(run: Path) -> None:
    """Remove the stop requests of earlier launches and their stopped.json. Call it on the rank that opens the run."""
    (run / STOPPED).unlink(missing_ok=True)
    launch = _request(run / STOP)[1]
    if not launch or launch != os.environ.get("AMPLIFY_LAUNCH"):
        (run / STOP).write_text("", encoding="utf-8")


def opened() -> None:
    """This launch has opened the run and forgotten earlier requests: from now on texts without a name count."""
    _opened.set()


def listen_to_file(run: Path) -> None:
    """Read RUN/.stop regularly, on one rank of each machine, in a thread: slow files do not delay the training loop."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        threading.Thread(target=_read, args=(run / STOP,), daemon=True).start()


def requested() -> bool:
    """Return whether this rank has a stop request, without any I/O."""
    return bool(_reasons)


def write_stopped(run: Path, step: int, checkpoint: str | None) -> None:
    """Write RUN/stopped.json: the run stopped on request after `step` steps and continues from `checkpoint`.

    Call it on rank 0, once the checkpoint is saved. Raises OSError if it cannot be written.
    """
    reason = _reasons[0] if _reasons else _request(run / STOP)[0] or "requested on another rank"
    write_json(run / STOPPED, {"step": step, "checkpoint": checkpoint, "reason": reason})
    (run / STOP).write_text("", encoding="utf-8")


def _signalled(number: int, frame) -> None:
    launcher_watch.signalled()
    _reasons.append(signal.Signals(number).name)


def _read(path: Path) -> None:
    """Read the stop file forever, and record requests for this launch."""
    while True:
        reason, launch = _request(path)
        named = bool(launch) and launch == os.environ.get("AMPLIFY_LAUNCH")
        if named and (end := re.fullmatch(rf"{END} (\d+)", reason)):
            os._exit(int(end[1]) % 256 or 1)
        if reason and not _reasons and (named or (not launch and _opened.is_set())):
            _reasons.append(reason)
        time.sleep(SECONDS_BETWEEN_POLLS)


def _request(path: Path) -> tuple[str, str]:
    """Return (request, name of the launch) of a stop file, each "" if missing."""
    try:
        reason, _, launch = path.read_text(encoding="utf-8").strip().partition(" of ")
    except (OSError, ValueError):
        return "", ""
    return reason, launch


class _Unbreakable:
    """A stream that ignores write errors: a closed terminal or ssh connection must not prevent the checkpoint."""

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
