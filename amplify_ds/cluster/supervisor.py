"""Supervise a launch: pass signals on to the ranks, end the other processes when one is lost, determine the outcome.

The launcher's exit code is not enough: it is 0 if the launcher was killed, and does not show that ranks saved and
stopped. The outcome therefore comes from the file that the run has written since the start: result.json, stopped.json
or stalled.json. Stop requests reach the ranks on all machines through RUN/.stop (training/stopping.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.launcher_process import SECONDS_BETWEEN_POLLS, LauncherProcess
from amplify_ds.errors import print_error
from amplify_ds.training import rank_files
from amplify_ds.training.rank_files import REPORT
from amplify_ds.training.stall_report import STALLED, STARTING
from amplify_ds.training.stopping import COMPLETE, END, LOST, SAVED, STOP, STOPPED

KILLED = 143  # the exit code that a shell reports for SIGTERM
SECONDS_OF_ONE_REQUEST = 5.0  # a SIGTERM within these repeats the first one: schedulers signal several processes
SECONDS_TO_END = 15  # for ranks whose launcher has ended
SECONDS_TO_SAVE = 90  # the same after a stop request; a launcher that also got the signal ends before its ranks
SECONDS_AFTER_LOSS = 5  # for the outcome file to appear: after a normal end, connections end too
SECONDS_AFTER_STALL = 20  # for pdsh to end; it waits forever for a stopped process that is alone on its node


class Signals:
    """The signals that this process has received since construction. kill: whether to kill the ranks.

    A second SIGINT kills. So does a second SIGTERM later than SECONDS_OF_ONE_REQUEST, except under SLURM, which sends
    SIGTERM again at the time limit, and later SIGKILL itself (KillWait).
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.kill = False
        self._first = 0.0  # when the first one was received
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, self._handle)

    def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until a signal has been received."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.received:
            time.sleep(SECONDS_BETWEEN_POLLS)

    def _handle(self, number: int, frame) -> None:
        repeated = signal.SIGINT in self.received or signal.SIGTERM in self.received
        if not self.received:
            self._first = time.monotonic()
        self.received.append(signal.Signals(number))
        late = time.monotonic() - self._first > SECONDS_OF_ONE_REQUEST and "SLURM_JOB_ID" not in os.environ
        if repeated and (number == signal.SIGINT or (number == signal.SIGTERM and late)):
            self.kill = True
            print_error("killing the ranks")
        elif len(self.received) == 1:
            print_error(f"{self.received[0].name}: asking the ranks to save and stop")


class Supervisor:
    """The supervisor of a run, for one launch after another."""

    def __init__(self, run: Path, signals: Signals):
        self.run, self.signals = run, signals
        self.began = False  # whether the last launch has begun to train

    def watch(self, start: Callable[[], LauncherProcess], launch: str, hosts: Sequence[Host] = ()) -> int:
        """Start a launch on `hosts`, wait until it has ended, and return the outcome.

        That is 0, SAVED, STALLED, LOST, KILLED or another exit code of the launcher. launch: its name.
        """
        before, jobs_before = self._file_ids(), rank_files.jobs(self.run)
        process, stalled, lost, outcome = start(), _Duration(), _Duration(), None
        while process.code() is None:
            if self.signals.received:
                self._write_stop(f"{self.signals.received[0].name} of {launch}")
            if self.signals.kill or stalled(self._file_ids()[REPORT] != before[REPORT]) > SECONDS_AFTER_STALL:
                process.kill()
            ended = process.ended_connections()
            if outcome is None and lost(bool(ended)) > SECONDS_AFTER_LOSS and self._new_outcome(before) is None:
                outcome = LOST
                names = ", ".join(host.name for host in hosts if any(host.name in command for command in ended))
                print_error(f"error: the connection to {names} or the ranks there have ended; ending the others")
                self.end_launch(launch, LOST)  # reaches ranks on machines that are cut off
                process.kill()
            process.poll()
            time.sleep(SECONDS_BETWEEN_POLLS)
        code = process.code() or 1
        self.began = self._has_begun(jobs_before)
        was_killed = code == LOST or code > 128  # above 128: by a signal
        if outcome is None and self.began and not self.signals.received and was_killed:
            outcome = LOST
        if len(hosts) > 1 and not self.signals.received and self._new_outcome(before) is None:
            self.end_launch(launch, outcome or code)
        process.close(SECONDS_TO_SAVE if self.signals.received and not self.signals.kill else SECONDS_TO_END)
        if self.signals.received:
            self._write_stop("")
        self.began = self.began or self._has_begun(jobs_before)
        if (new_outcome := self._new_outcome(before)) is not None:
            return new_outcome
        return KILLED if self.signals.kill else outcome or code

    def end_launch(self, launch: str, code: int = LOST) -> None:
        """Make all ranks of a launch, on all machines, exit at once with `code`."""
        self._write_stop(f"{END} {code} of {launch}")

    def _has_begun(self, jobs_before: set[tuple[int, str]]) -> bool:
        """Return whether a job that is not in `jobs_before` has begun to train."""
        earlier = {job for job, _ in jobs_before}
        return any(job not in earlier and phase != STARTING for job, phase in rank_files.jobs(self.run))

    def _new_outcome(self, before: dict) -> int | None:
        """Return the outcome if the run has written a file that is newer than those in `before`, else None."""
        self._refresh_names()
        after = self._file_ids()
        for name, outcome in ((COMPLETE, 0), (STOPPED, SAVED), (REPORT, STALLED)):
            if after[name] and after[name] != before[name]:
                return outcome
        return None

    def _file_ids(self) -> dict[str, tuple | None]:
        """Return the identity of each outcome file, which changes when a file is replaced by one with equal content."""
        return {name: _file_id(self.run / name) for name in (COMPLETE, STOPPED, REPORT)}

    def _refresh_names(self) -> None:
        """List the run directory, so that NFS shows new names."""
        try:
            os.listdir(self.run)
        except OSError:
            pass

    def _write_stop(self, text: str) -> None:
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            (self.run / STOP).write_text(text, encoding="utf-8")
        except OSError:
            pass


class _Duration:
    """How many seconds a condition has been true without interruption."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, condition: bool) -> float:
        if not condition:
            self._first = None
            return 0.0
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None
