"""One start of DeepSpeed's launcher, and everything that it starts on this machine.

The launcher gets a session of its own: a signal to ours, or to our terminal, does not reach it. pdsh gives each ssh
another one, so what is below the launcher is noted while it runs; a process is known by its number and its start, and
nothing else is ever signalled. DeepSpeed's own way to end a job on other machines is never used: it ends every
DeepSpeed job of the same Python there. When an ssh ends, the ranks at its other end do (training/launcher_watch.py).

A guard, a fork of this process, does the same when this process is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

SECONDS_BETWEEN_LOOKS = 0.5


class LauncherProcess:
    def __init__(self, words: Sequence[str], environment: Mapping[str, str]):
        self._noted: set[psutil.Process] = set()
        self._connections: dict[psutil.Process, list[str]] = {}  # each ssh, and its command line
        self._launcher = subprocess.Popen(words, env=dict(environment), start_new_session=True)
        with suppress(psutil.NoSuchProcess):
            self._noted.add(psutil.Process(self._launcher.pid))
        self._guard = self._start_guard(os.getpid())

    def code(self) -> int | None:
        """The launcher's exit code, as a shell gives it; None while it runs."""
        code = self._launcher.poll()
        return code if code is None or code >= 0 else 128 - code

    def look(self) -> None:
        """Note what the launcher has started since."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._launcher.pid).children(recursive=True):
                if process not in self._noted:
                    self._noted.add(process)
                    with suppress(psutil.Error):
                        if process.name() == "ssh":
                            self._connections[process] = process.cmdline()

    def ended_connections(self) -> list[list[str]]:
        """The command lines of those ssh that have ended."""
        return [words for process, words in self._connections.items() if not _runs(process)]

    def left(self) -> list[psutil.Process]:
        """What still runs of it, launcher included; dead processes that nobody has asked about do not count."""
        return [process for process in self._noted if _runs(process)]

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._launcher.pid, signal.SIGKILL)
        for process in self.left():
            with suppress(psutil.Error):
                process.kill()

    def close(self, patience: float) -> None:
        """Wait until nothing is left, kill what is after `patience` seconds, and let the guard go."""
        deadline = time.monotonic() + patience
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill()
        self._launcher.wait()
        with suppress(psutil.Error):
            self._guard.kill()
            self._guard.wait()

    def _start_guard(self, parent: int) -> psutil.Process:
        pid = os.fork()
        if pid:
            return psutil.Process(pid)
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.setsid()
            while os.getppid() == parent:
                self.look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            self.kill()
        finally:
            os._exit(0)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
