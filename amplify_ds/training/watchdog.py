"""The watchdog ends a job whose loop stands still, and reports the rank responsible.

The training loop of every rank calls `watch.at(step, phase)`, which sets attributes. Every few seconds (a beat) a
thread writes them to RUN/.ranks/rank-00003.json, with a counter that shows that the process lives and the loop's Python
stack. When its own loop has not moved for `seconds`, a rank reads the files of all ranks twice, a few beats apart, and
determines the culprits (stall_report.py):

    silent   ranks whose files did not change: the process is stopped or dead, or its node is cut off
    behind   otherwise the rank whose loop has passed the fewest phases; of several, the one in a phase without
             collectives, or whose stack is not inside a collective

The lowest rank that responds reports them on standard error and in RUN/stalled.json. All ranks exit with code 70, and a
silent process of the same launcher is killed, because a stopped process does not react to SIGTERM. Times are measured
with the reader's monotonic clock; clocks of two machines are never compared. If the thread itself is stuck (a dead file
system, a call that holds the interpreter's lock), faulthandler's timer, which needs neither, ends the process after
1.5 · `seconds` + 5 s. torch's flight recorder, which knows what a collective on GPUs waits for, writes to RUN/.ranks.
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
from amplify_ds.training.stall_report import FINISHED, STALLED, STARTING, find_culprits, message

LONGEST_BEAT = 5.0  # seconds
BEATS_OF_SILENCE = 4
FRAMES = 20
SECONDS_OF_A_SLOW_DISK = 15.0
COLLECTIVES = "nccl-rank-"  # followed by the rank: torch's file when a NCCL collective exceeds the group's timeout
_STDERR = 2  # file descriptor of a rank's log, even if sys.stderr is replaced


def forget_earlier(run: Path) -> None:
    """Remove the files of an earlier start. Call it on the rank that opens the run, before the others write."""
    (run / REPORT).unlink(missing_ok=True)
    (run / FOLDER).mkdir(exist_ok=True)
    for path in (run / FOLDER).glob("*rank-*"):
        path.unlink(missing_ok=True)


class Watchdog:
    """The watchdog of one rank. seconds: 0 to switch it off. job: a number shared by all ranks of this start only."""

    def __init__(self, run: Path, rank: int, world_size: int, seconds: float, job: int):
        self.run, self.rank, self.world_size, self.seconds, self.job = run, rank, world_size, seconds, job
        self.beat_seconds = min(LONGEST_BEAT, seconds / 10) if seconds else LONGEST_BEAT
        self._location, self._calls, self._moves, self._beat = (0, STARTING), 0, 0, 0
        self._warned = False
        self._identity = rank_files.identity(rank, job)
        self._read_all = partial(rank_files.read_all, run, world_size, job)
        self._loop = threading.main_thread().ident or 0  # never 0: the thread is running
        self._closing, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if "TORCH_NCCL_DEBUG_INFO_TEMP_FILE" not in os.environ:  # older name of the same variable
            # torch reads it when it writes, so this may come after the creation of the process group.
            os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(run.absolute() / FOLDER / COLLECTIVES))

    def start(self) -> Watchdog:
        self._thread.start()
        return self

    def at(self, step: int, phase: str) -> None:
        """Record that the loop has reached this phase, or moves on within it. All ranks go through the same phases."""
        if self._location != (step, phase):
            begins = self._location[1] == STARTING
            self._location = (step, phase)
            self._moves += 1
            if begins:
                self._wake.set()  # write at once that training has begun: whether a job is restarted depends on it
        self._calls += 1

    @property
    def location(self) -> str:
        """Step and phase of the loop. The rank's file may be one beat older."""
        return "step {}, {}".format(*self._location)

    def close(self) -> None:
        """Stop watching: the loop has ended, and other ranks do not wait for this one."""
        self.at(self._location[0], FINISHED)
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        try:
            self._poll()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _poll(self) -> None:
        """Write this rank's file at every beat, and end the process when the loop has stood still for `seconds`."""
        calls, moved, earlier, closing = -1, 0.0, None, False
        while not closing:
            closing, now = self._closing.is_set(), time.monotonic()
            if self._calls != calls:
                calls, moved, earlier = self._calls, now, None
                if self.seconds:
                    faulthandler.dump_traceback_later(1.5 * self.seconds + LONGEST_BEAT, exit=True, file=_STDERR)
            still = now - moved
            self._write(still)
            if self.seconds and still >= self.seconds - BEATS_OF_SILENCE * self.beat_seconds:
                if earlier is None:  # even if this process itself was stopped for a while, it reads the files twice
                    earlier, read_at = self._read_all(), now
                elif still >= self.seconds and now - read_at >= (BEATS_OF_SILENCE - 1) * self.beat_seconds:
                    self._end(earlier, self._read_all(), still)
            self._wake.wait(self.beat_seconds)
            self._wake.clear()

    def _write(self, still: float) -> None:
        self._beat += 1
        step, phase = self._location
        location = {"step": step, "phase": phase, "moves": self._moves, "seconds_in_phase": round(still, 1)}
        warning = threading.Timer(SECONDS_OF_A_SLOW_DISK, self._warn_of_a_slow_disk)
        warning.daemon = True
        if self.rank == 0:
            warning.start()
        rank_files.write(self.run, self._identity | location | {"beat": self._beat, "stack": self._stack()})
        warning.cancel()

    def _warn_of_a_slow_disk(self) -> None:
        """Print, once, that a write of this rank's file has not returned."""
        if not self._warned:
            self._warned = True
            print_error(
                f"warning: the file system of {self.run} has not answered for {SECONDS_OF_A_SLOW_DISK:g} s. The run "
                "waits, and continues when it answers."
            )

    def _stack(self) -> list[str]:
        """Return the loop's innermost frames as FILE:LINE in FUNCTION, the innermost last."""
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
        """Report the culprits, on one rank, and kill silent ones."""
        verdict = find_culprits(before, after, self.world_size)
        responding = [rank for rank in after if not (verdict.silent and rank in verdict.ranks)]
        if self.rank != min(responding, default=self.rank):  # wait in case the lowest one continues or cannot write
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
            # The launcher ends the others as soon as this one ends: let them print their messages first.
            time.sleep(self.beat_seconds)
