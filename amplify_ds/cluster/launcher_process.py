"""One start of DeepSpeed's launcher, and every process that it starts on this machine.

The launcher runs in its own session: signals to this process or its terminal do not reach it. pdsh puts each ssh into
another session, so descendants of the launcher are recorded while it runs. A process is identified by its id and start
time, and no other process is ever signalled. DeepSpeed's own way to end a job on other machines is not used, because it
ends every DeepSpeed job of the same Python there. When an ssh ends, the ranks at its other end do too
(training/launcher_watch.py).

A guard, a fork of this process, kills the launcher and its descendants if this process is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

SECONDS_BETWEEN_POLLS = 0.5


class LauncherProcess:
    """Start `command`, with a guard that ends it together with this process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        self._processes: set[psutil.Process] = set()
        self._connections: dict[psutil.Process, list[str]] = {}  # each ssh with its command line
        self._launcher = subprocess.Popen(command, env=dict(environment), start_new_session=True)
        with suppress(psutil.NoSuchProcess):
            self._processes.add(psutil.Process(self._launcher.pid))
        self._guard = self._start_guard(os.getpid())

    def code(self) -> int | None:
        """Return the launcher's exit code, 128 + N after signal N; None while it runs."""
        code = self._launcher.poll()
        return code if code is None or code >= 0 else 128 - code

    def poll(self) -> None:
        """Record the processes that the launcher has started since the last call."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._launcher.pid).children(recursive=True):
                if process not in self._processes:
                    self._processes.add(process)
                    with suppress(psutil.Error):
                        if process.name() == "ssh":
                            self._connections[process] = process.cmdline()

    def ended_connections(self) -> list[list[str]]:
        """Return the command lines of the ssh processes that have ended."""
        return [command for process, command in self._connections.items() if not _is_running(process)]

    def running(self) -> list[psutil.Process]:
        """Return the processes that still run, including the launcher, without zombies."""
        return [process for process in self._processes if _is_running(process)]

    def kill(self) -> None:
        """Kill the launcher and its descendants."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._launcher.pid, signal.SIGKILL)
        for process in self.running():
            with suppress(psutil.Error):
                process.kill()

    def close(self, patience: float) -> None:
        """Wait until no process is left, kill those that run after `patience` seconds, and end the guard."""
        deadline = time.monotonic() + patience
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill()
        self._launcher.wait()
        with suppress(psutil.Error):
            self._guard.kill()
            self._guard.wait()

    def _start_guard(self, parent: int) -> psutil.Process:
        """Fork and return the guard, which waits until `parent` has ended."""
        pid = os.fork()
        if pid:
            return psutil.Process(pid)
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            os.setsid()
            while os.getppid() == parent:
                self.poll()
                time.sleep(SECONDS_BETWEEN_POLLS)
            self.kill()
        finally:
            os._exit(0)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
