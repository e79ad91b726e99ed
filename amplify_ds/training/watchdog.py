"""A rank that stops responding is named, and the job ends instead of hanging.

Every rank's loop says where it is: `watch.at(step, phase)` sets two attributes. A thread writes that every few seconds
into RUN/.ranks/rank-00003.json, with a count that shows that the process lives and the Python stack of the loop.
When its own loop has not moved for `seconds`, a rank reads everybody's file twice, a few beats apart, and decides
(stall_report.py):

    silent   files that did not change in between: the process is stopped or dead, or its node is cut off
    behind   else the rank that has passed the fewest places of the loop; of several the one that is in a phase without
             collectives, or whose stack does not stand in one

The lowest rank that responds says so on standard error and in RUN/stalled.json; all end with code 70, and a silent
process of the same launcher is killed, for a stopped one does not even notice SIGTERM. Times are those of the reader's
own monotonic clock; clocks of two hosts are never compared. Should the thread itself be stuck (a dead file system, a
call that keeps the interpreter's lock), faulthandler's timer, which needs neither, ends the process half as late again.
What a collective on GPUs waits for, torch's flight recorder knows: it writes by itself, here into RUN/.ranks.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from amplify_ds.errors import print_error
from amplify_ds.training import rank_files
from amplify_ds.training.rank_files import FOLDER, REPORT
from amplify_ds.training.stall_report import FINISHED, STALLED, STARTING, judge, message

LONGEST_BEAT = 5.0  # seconds
BEATS_OF_SILENCE = 4
FRAMES = 20
SECONDS_OF_A_SLOW_DISK = 15.0
COLLECTIVES = "nccl-rank-"  # and the rank: what torch writes when one of NCCL's takes longer than the group's timeout
_STDERR = 2  # the file descriptor: a rank's log, whatever sys.stderr is


def forget_earlier(run: Path) -> None:
    """Remove the files of an earlier start (by the rank that has opened the run, before the others write)."""
    (run / REPORT).unlink(missing_ok=True)
    (run / FOLDER).mkdir(exist_ok=True)
    for path in (run / FOLDER).glob("*rank-*"):
        path.unlink(missing_ok=True)


class Watchdog:
    """The watch of one rank. job: a number that all ranks of this start share, and no other start has."""

    def __init__(self, run: Path, rank: int, world_size: int, seconds: float, job: int):
        self.run, self.rank, self.world_size, self.seconds, self.job = run, rank, world_size, seconds, job
        self.beat_seconds = min(LONGEST_BEAT, seconds / 10) if seconds else LONGEST_BEAT
        self._place, self._turns, self._moves, self._beat = (0, STARTING), 0, 0, 0
        self._warned = False
        self._own = rank_files.identity(rank, job)
        self._read_all = partial(rank_files.read_all, run, world_size, job)
        self._loop = threading.main_thread().ident or 0  # it runs, so it has one
        self._closing, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if "TORCH_NCCL_DEBUG_INFO_TEMP_FILE" not in os.environ:  # the older name of the same
            # torch looks for it when it writes, so this may come after the process group.
            os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(run.absolute() / FOLDER / COLLECTIVES))

    def start(self) -> Watchdog:
        self._thread.start()
        return self

    def at(self, step: int, phase: str) -> None:
        """The loop has come to this place, or has moved on within it. All ranks pass the same places in order."""
        if self._place != (step, phase):
            begins = self._place[1] == STARTING
            self._place = (step, phase)
            self._moves += 1
            if begins:
                self._wake.set()  # that training has begun is written at once: what becomes of the job depends on it
        self._turns += 1

    @property
    def place(self) -> str:
        """Where the loop is now. What it has written of itself may be a beat old."""
        return "step {}, {}".format(*self._place)

    def close(self) -> None:
        """The loop has ended: this rank is no longer waited for."""
        self.at(self._place[0], FINISHED)
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        try:
            self._look_on()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _look_on(self) -> None:
        turns, moved, earlier, closing = -1, 0.0, None, False
        while not closing:
            closing, now = self._closing.is_set(), time.monotonic()
            if self._turns != turns:
                turns, moved, earlier = self._turns, now, None
                if self.seconds:
                    faulthandler.dump_traceback_later(1.5 * self.seconds + LONGEST_BEAT, exit=True, file=_STDERR)
            still = now - moved
            self._write(still)
            if self.seconds and still >= self.seconds - BEATS_OF_SILENCE * self.beat_seconds:
                if earlier is None:  # also after this process itself was stopped for a while: others must be seen twice
                    earlier, found_at = self._read_all(), now
                elif still >= self.seconds and now - found_at >= (BEATS_OF_SILENCE - 1) * self.beat_seconds:
                    self._end(earlier, self._read_all(), still)
            self._wake.wait(self.beat_seconds)
            self._wake.clear()

    def _write(self, still: float) -> None:
        self._beat += 1
        step, phase = self._place
        place = {"step": step, "phase": phase, "moves": self._moves, "seconds_in_phase": round(still, 1)}
        warning = threading.Timer(SECONDS_OF_A_SLOW_DISK, self._warn_of_a_slow_disk)
        warning.daemon = True
        if self.rank == 0:
            warning.start()
        rank_files.write(self.run, self._own | place | {"beat": self._beat, "stack": self._stack()})
        warning.cancel()

    def _warn_of_a_slow_disk(self) -> None:
        """Once: a write of this file has not returned."""
        if not self._warned:
            self._warned = True
            print_error(
                f"warning: the file system of {self.run} has not answered for {SECONDS_OF_A_SLOW_DISK:g} s. The run "
                "waits, and continues when it answers."
            )

    def _stack(self) -> list[str]:
        """The loop's innermost frames, the innermost last, each as FILE:LINE in FUNCTION."""
        if (innermost := sys._current_frames().get(self._loop)) is None:
            return []
        frames = islice(traceback.walk_stack(innermost), FRAMES)
        return [f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}" for frame, line in frames][::-1]

    def _end(self, before: dict[int, dict], after: dict[int, dict], still: float) -> None:
        try:
            self._report(before, after, still)
        finally:
            os._exit(STALLED)

    def _report(self, before: dict[int, dict], after: dict[int, dict], still: float) -> None:
        verdict = judge(before, after, self.world_size)
        responding = [rank for rank in after if not (verdict.silent and rank in verdict.ranks)]
        if self.rank != min(responding, default=self.rank):  # unless the lowest one moves on, or cannot write
            deadline = time.monotonic() + BEATS_OF_SILENCE * self.beat_seconds
            while time.monotonic() < deadline and not rank_files.reported(self.run, self.job):
                time.sleep(self.beat_seconds / 2)
        states = {rank: rank_files.state(after[rank]) for rank in verdict.ranks if rank in after}
        content = {"job": self.job} | asdict(verdict) | {"found_by": self.rank, "seconds": round(still, 1)}
        content |= {"processes": states, "records": list(after.values())}
        path = self.run / REPORT
        if rank_files.report(self.run, content):
            print_error(message(verdict, after, states, still, self.seconds, path))
        else:
            print_error(
                f"rank {self.rank} ends with code {STALLED}: training stood still for {still:.0f} s, see {path}"
            )
        for rank in states if verdict.silent else ():
            rank_files.kill(after[rank])
        if len(responding) > 1:
            # The launcher ends the others as soon as this one ends: let them say so first.
            time.sleep(self.beat_seconds)
