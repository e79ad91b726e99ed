"""Logs: each rank writes its output to a file such as RUN/logs/rank-00003.log, which a resumed run continues.

Rank 0 also prints to the console, and only there shows its progress bar. On the other ranks the log replaces standard
output and standard error, also for C libraries; the console shows only their errors, with rank and host.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from amplify_ds import errors
from amplify_ds.training import shared_files

FOLDER = "logs"


def open_log(run: Path, rank: int) -> None:
    """Write this rank's output to its log from now on; on rank 0 also to the console."""
    shared_files.wait_for(run)  # rank 0 has created it
    path = run / FOLDER / f"rank-{rank:05d}.log"
    path.parent.mkdir(exist_ok=True)
    log = open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    log.write(f"== {started}, rank {rank} on {socket.gethostname()}, process {os.getpid()}\n")
    if rank == 0:
        sys.stdout, sys.stderr = _Both(sys.stdout, log), _Both(sys.stderr, log)
        return
    console = open(os.dup(2), "w", buffering=1, errors="backslashreplace")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    errors.console = console
    sys.excepthook = _Hook(console, path)


class _Both:
    """A stream that writes to the console and to the log."""

    def __init__(self, console: TextIO, log: TextIO):
        self._console, self._log = console, log

    def write(self, text: str) -> int:
        if "\r" not in text:  # the progress bar has it
            try:
                self._log.write(text)
            except OSError:  # a full disk ends the run when a checkpoint fails, not here
                pass
        return self._console.write(text)

    def __getattr__(self, name):
        return getattr(self._console, name)


class _Hook:
    """Exception hook that writes the traceback to the log and a line with the log's path to the console."""

    def __init__(self, console: TextIO, path: Path):
        self._console, self._path, self._log_traceback = console, path, sys.excepthook

    def __call__(self, kind, error, traceback) -> None:
        self._log_traceback(kind, error, traceback)
        line = (str(error).splitlines() or [""])[0]
        try:
            print(f"{errors.prefix}{kind.__name__}: {line}; the traceback is in {self._path}", file=self._console)
        except OSError:
            pass
