"""Watches over a launch: passes signals on, ends what is left when a part has gone, says how it truly ended.

The launcher's exit code is 0 when it was killed, and says nothing of ranks that saved and stopped. So the outcome is
what the run wrote: result.json, stopped.json or stalled.json, new since this start. Ranks on all machines hear of a
stop through RUN/.stop, in the directory that they share (training/stopping.py).
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from amplify_ds.cluster.hostfile import Host
from amplify_ds.cluster.launcher_process import SECONDS_BETWEEN_LOOKS, LauncherProcess
from amplify_ds.errors import print_error as say
from amplify_ds.training.rank_files import FOLDER, REPORT
from amplify_ds.training.stall_report import STALLED, STARTING
from amplify_ds.training.stopping import COMPLETE, END, LOST, SAVED, STOP, STOPPED

KILLED = 143  # what a shell reports for SIGTERM
SECONDS_OF_ONE_REQUEST = 5.0  # a second SIGTERM within these belongs to the first: schedulers signal several processes
SECONDS_TO_END = 15  # for ranks of a launcher that has ended
SECONDS_TO_SAVE = 90  # for those that were asked to stop: a launcher that was signalled, too, ends before they do
SECONDS_AFTER_LOSS = 5  # for the outcome to be seen: ranks leave together, when it is written, or have failed
SECONDS_AFTER_STALL = 20  # for pdsh; a process that is stopped and alone on its node keeps it waiting for ever


class Signals:
    """The signals that this process has received since construction. kill: the ranks are to be killed.

    A second SIGINT kills, and a second SIGTERM that comes later than SECONDS_OF_ONE_REQUEST, except under SLURM: it
    sends SIGTERM again at the time limit, and by itself SIGKILL when its patience (KillWait) is over.
    """

    def __init__(self) -> None:
        self.asked: list[signal.Signals] = []
        self.kill = False
        self._times: list[float] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, self._heard)

    def pause(self, seconds: float) -> None:
        """Wait, unless asked to stop."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.asked:
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _heard(self, number: int, frame) -> None:
        now, earlier = time.monotonic(), self.asked.count(signal.SIGINT) + self.asked.count(signal.SIGTERM)
        self.asked.append(signal.Signals(number))
        self._times.append(now)
        late = now - self._times[0] > SECONDS_OF_ONE_REQUEST and "SLURM_JOB_ID" not in os.environ
        if earlier and (number == signal.SIGINT or (number == signal.SIGTERM and late)):
            self.kill = True
            say("killing the ranks")
        elif len(self.asked) == 1:
            say(f"{self.asked[0].name}: asking the ranks to save and stop")


class Supervisor:
    """Of one run, in which launches follow each other."""

    def __init__(self, run: Path, signals: Signals):
        self.run, self.signals = run, signals
        self.began = False  # whether the last launch has reached training

    def watch(self, start: Callable[[], LauncherProcess], launch: str, hosts: Sequence[Host] = ()) -> int:
        """Start on `hosts`, watch to the end, and return the outcome: 0, SAVED, STALLED, LOST, KILLED or another."""
        before, records = self._marks(), self._jobs()
        process, stalled, lost, outcome = start(), _Since(), _Since(), None
        while process.code() is None:
            if self.signals.asked:
                self._write_stop(f"{self.signals.asked[0].name} of {launch}")
            if self.signals.kill or stalled(self._marks()[REPORT] != before[REPORT]) > SECONDS_AFTER_STALL:
                process.kill()
            ended = process.ended_connections()
            if outcome is None and lost(bool(ended)) > SECONDS_AFTER_LOSS and self._new(before) is None:
                outcome = LOST
                names = ", ".join(host.name for host in hosts if any(host.name in words for words in ended))
                say(f"error: the connection to {names} or the ranks there have ended; ending the others")
                self.end_launch(launch, LOST)  # for ranks that nothing else reaches
                process.kill()
            process.look()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        code = process.code() or 1
        self.began = self._began(records)
        if outcome is None and self.began and not self.signals.asked and (code == LOST or code > 128):  # a signal
            outcome = LOST
        if len(hosts) > 1 and not self.signals.asked and self._new(before) is None:
            self.end_launch(launch, outcome or code)
        process.close(SECONDS_TO_SAVE if self.signals.asked and not self.signals.kill else SECONDS_TO_END)
        if self.signals.asked:
            self._write_stop("")
        self.began = self.began or self._began(records)
        if (said := self._new(before)) is not None:
            return said
        return KILLED if self.signals.kill else outcome or code

    def end_launch(self, launch: str, code: int = LOST) -> None:
        """Let all ranks of a launch end at once with `code`, on whatever machine they are."""
        self._write_stop(f"{END} {code} of {launch}")

    def _began(self, records: set[tuple[int, str]]) -> bool:
        """Whether training has begun since the rank files were `records`."""
        earlier = {job for job, _ in records}
        return any(job not in earlier and phase != STARTING for job, phase in self._jobs())

    def _new(self, before: dict) -> int | None:
        """The outcome, if the run has one that is newer than `before`."""
        self._list()
        after = self._marks()
        for name, outcome in ((COMPLETE, 0), (STOPPED, SAVED), (REPORT, STALLED)):
            if after[name] and after[name] != before[name]:
                return outcome
        return None

    def _marks(self) -> dict[str, tuple | None]:
        """Which file each name stands for: another one than before, even if it says the same, is new."""
        return {name: _mark(self.run / name) for name in (COMPLETE, STOPPED, REPORT)}

    def _jobs(self) -> set[tuple[int, str]]:
        """(job, phase) of every rank, as the watchdogs write them."""
        found = set()
        for path in (self.run / FOLDER).glob("rank-*.json"):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                found.add((record["job"], record["phase"]))
            except (OSError, ValueError, KeyError, TypeError):
                pass
        return found

    def _list(self) -> None:
        """Let NFS show the newest names."""
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


class _Since:
    """For how many seconds something has been true."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, happens: bool) -> float:
        if not happens:
            self._first = None
            return 0.0
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
        return found.st_ino, found.st_mtime_ns
    except OSError:
        return None
