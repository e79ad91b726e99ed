"""What each rank says: all in RUN/logs/rank-00003.log; on the console rank 0, and errors of any with rank and host.

A log goes on when the run does. Rank 0 speaks in both places, but its bar of progress stays on the console. The others
have standard output and error replaced by their log, also for libraries in C.
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
    """From now on this rank's words go into its log, too (rank 0) or only (the others)."""
    shared_files.wait_for(run)  # rank 0 has made it
    path = run / FOLDER / f"rank-{rank:05d}.log"
    path.parent.mkdir(exist_ok=True)
    log = open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    log.write(f"== {began}, rank {rank} on {socket.gethostname()}, process {os.getpid()}\n")
    if rank == 0:
        sys.stdout, sys.stderr = _Both(sys.stdout, log), _Both(sys.stderr, log)
        return
    console = open(os.dup(2), "w", buffering=1, errors="backslashreplace")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    errors.console = console
    sys.excepthook = _Hook(console, path)


class _Both:
    """A stream that is the console's, and writes into the log as well."""

    def __init__(self, console: TextIO, log: TextIO):
        self._console, self._log = console, log

    def write(self, text: str) -> int:
        if "\r" not in text:  # that is the bar
            try:
                self._log.write(text)
            except OSError:  # a full disk is for the checkpoint to find
                pass
        return self._console.write(text)

    def __getattr__(self, name):
        return getattr(self._console, name)


class _Hook:
    """An exception that nobody expected: the traceback is for the log, the console says where it is."""

    def __init__(self, console: TextIO, path: Path):
        self._console, self._path, self._log = console, path, sys.excepthook

    def __call__(self, kind, error, traceback) -> None:
        self._log(kind, error, traceback)
        line = (str(error).splitlines() or [""])[0]
        try:
            print(f"{errors.prefix}{kind.__name__}: {line}; the traceback is in {self._path}", file=self._console)
        except OSError:
            pass
