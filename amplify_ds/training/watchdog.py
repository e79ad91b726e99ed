"""A rank that stops responding is named, and the job ends instead of hanging.

Every rank's loop says where it is: `watch.at(step, phase)` sets two attributes. A thread writes that every few seconds
into RUN/.ranks/rank-00003.json, with a count that shows that the process lives and the Python stack of the loop.
When its own loop has not moved for `seconds`, a rank reads everybody's file twice, a few beats apart, and decides:

    silent   files that did not change in between: the process is stopped or dead, or its node is cut off
    behind   else the rank that has passed the fewest places of the loop; of several the one that is in a phase without
             collectives, or whose stack does not stand in one

The lowest rank that responds says so on standard error and in RUN/stalled.json; all end with code 70, and a silent
process of the same launcher is killed, for a stopped one does not even notice SIGTERM. Times are those of the reader's
own monotonic clock; clocks of two hosts are never compared. Should the thread itself be stuck (a dead file system, a
call that keeps the interpreter's lock), faulthandler's timer, which needs neither, ends the process half as late again.
"""

from __future__ import annotations

import faulthandler
import json
import linecache
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplify_ds.errors import report as report_error
from amplify_ds.training import processes

STALLED = 70  # exit code: a rank stopped responding (EX_SOFTWARE of sysexits.h)
FOLDER, REPORT = ".ranks", "stalled.json"
ALONE = ("starting", "waiting for data", "writing the checkpoint")  # phases in which no rank waits for another
COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")  # in the path of a frame: the rank waits for others
FINISHED = "finished"
LONGEST_BEAT = 5.0  # seconds
BEATS_OF_SILENCE = 4
FRAMES = 20
_STDERR = 2  # the file descriptor: a rank's log, whatever sys.stderr is


@dataclass(frozen=True)
class Verdict:
    ranks: list[int]  # the culprits, the one to look at first in front
    silent: bool
    why: str


def judge(before: dict[int, dict], after: dict[int, dict], world_size: int) -> Verdict:
    """Who holds everybody up, from everybody's file read twice. A rank without a file is missing in both."""
    finished = {rank for rank, record in after.items() if record["phase"] == FINISHED}
    silent = [
        rank
        for rank in range(world_size)
        if rank not in finished and after.get(rank, {}).get("beat") == before.get(rank, {}).get("beat")
    ]
    if silent:
        return Verdict(silent, True, "its process does not answer")
    candidates = sorted(rank for rank in after if rank not in finished) or sorted(after)
    why = "all ranks stand at the same place" if len(candidates) > 1 else "its loop does not move"
    for reason, key in (
        ("it is behind the other ranks", lambda record: record["moves"]),
        ("it is in no collective, the others wait for it", lambda record: record["phase"] not in ALONE),
        ("its stack stands in no collective, the others wait for it", lambda record: _waits(record["stack"])),
    ):
        least = min(key(after[rank]) for rank in candidates)
        fewer = [rank for rank in candidates if key(after[rank]) == least]
        if len(fewer) < len(candidates):
            candidates, why = fewer, reason
    return Verdict(candidates, False, why)


def _waits(stack: list[str]) -> bool:
    return any(part in frame for frame in stack for part in COLLECTIVES)


class Watchdog:
    """The watch of one rank. job: a number that all ranks of this start share, and no other start has."""

    def __init__(self, run: Path, rank: int, world_size: int, seconds: float, job: int):
        self.run, self.rank, self.world_size, self.seconds, self.job = run, rank, world_size, seconds, job
        self.beat_seconds = min(LONGEST_BEAT, seconds / 10) if seconds else LONGEST_BEAT
        self._place, self._turns, self._moves, self._beat = (0, "starting"), 0, 0, 0
        self._own = {"job": job, "rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._own |= {"launcher": os.getppid(), "started": processes.started(os.getpid())}
        self._loop = threading.main_thread().ident or 0  # it runs, so it has one
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> Watchdog:
        self._thread.start()
        return self

    def at(self, step: int, phase: str) -> None:
        """The loop has come to this place, or has moved on within it. All ranks pass the same places in order."""
        if self._place != (step, phase):
            self._place = (step, phase)
            self._moves += 1
        self._turns += 1

    @property
    def place(self) -> str:
        """Where the loop is now. What it has written of itself may be a beat old."""
        return "step {}, {}".format(*self._place)

    def close(self) -> None:
        """The loop has ended: this rank is no longer waited for."""
        self.at(self._place[0], FINISHED)
        self._closing.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        try:
            self._look_on()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _look_on(self) -> None:
        turns, moved, earlier = -1, 0.0, None
        closing = False
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
            self._closing.wait(self.beat_seconds)

    def _write(self, still: float) -> None:
        self._beat += 1
        step, phase = self._place
        record = self._own | {
            "step": step,
            "phase": phase,
            "moves": self._moves,
            "seconds_in_phase": round(still, 1),
            "beat": self._beat,
            "stack": self._stack(),
        }
        try:
            (self.run / FOLDER / f"rank-{self.rank:05d}.json").write_text(json.dumps(record), encoding="utf-8")
        except OSError:
            pass  # a full disk is for the loop to find

    def _stack(self) -> list[str]:
        """The loop's innermost frames, the innermost last, each as FILE:LINE in FUNCTION."""
        frame = sys._current_frames().get(self._loop)
        found: list[str] = []
        while frame is not None and len(found) < FRAMES:
            found.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
            frame = frame.f_back
        return found[::-1]

    def _read_all(self) -> dict[int, dict]:
        found = {}
        for rank in range(self.world_size):
            record = _read(self.run / FOLDER / f"rank-{rank:05d}.json")
            if record and record.get("job") == self.job:
                found[rank] = record
        return found

    def _end(self, before: dict[int, dict], after: dict[int, dict], still: float) -> None:
        try:
            self._report(before, after, still)
        finally:
            os._exit(STALLED)

    def _report(self, before: dict[int, dict], after: dict[int, dict], still: float) -> None:
        verdict = judge(before, after, self.world_size)
        responding = [rank for rank in after if not (verdict.silent and rank in verdict.ranks)]
        report = self.run / REPORT
        if self.rank != min(responding, default=self.rank):  # unless the lowest one moves on, or cannot write
            deadline = time.monotonic() + BEATS_OF_SILENCE * self.beat_seconds
            while time.monotonic() < deadline and (_read(report) or {}).get("job") != self.job:
                time.sleep(self.beat_seconds / 2)
        states = {rank: self._state(after[rank]) for rank in verdict.ranks if rank in after}
        content = {
            "job": self.job,
            "ranks": verdict.ranks,
            "silent": verdict.silent,
            "why": verdict.why,
            "found_by": self.rank,
            "seconds": round(still, 1),
            "processes": states,
            "records": list(after.values()),
        }
        if _claim(report, content):
            report_error(self._message(verdict, after, states, still))
        else:
            report_error(
                f"rank {self.rank} ends with code {STALLED}: training stood still for {still:.0f} s, see {report}"
            )
        for rank in verdict.ranks if verdict.silent else ():
            self._kill(after.get(rank))
        if len(responding) > 1:
            # The launcher ends the others as soon as this one ends: let them say so first.
            time.sleep(self.beat_seconds)

    def _message(self, verdict: Verdict, records: dict[int, dict], states: dict[int, str], still: float) -> str:
        lines = [f"error: training has stood still for {still:.0f} s (watchdog.seconds {self.seconds:g})"]
        for rank in verdict.ranks[:4]:
            if (record := records.get(rank)) is None:
                lines.append(f"rank {rank} has not said anything since the start: {verdict.why}")
                continue
            lines.append(
                f"rank {rank} on {record['host']} (process {record['pid']}), step {record['step']}, {record['phase']}: "
                f"{verdict.why}{'; it is ' + states[rank] if verdict.silent and states[rank] else ''}"
            )
            lines.append(f"its stack{', like its step as last written' if verdict.silent else ''}, innermost last:")
            lines += [f"    {_with_source(frame)}" for frame in record["stack"][-8:]]
        if more := verdict.ranks[4:]:
            lines.append(f"and the ranks {', '.join(map(str, more))}")
        lines.append(
            f"Every rank's stack is in {self.run / REPORT}. The job ends with code {STALLED}; the same command "
            "continues from the newest checkpoint. If nothing was wrong, raise --watchdog.seconds."
        )
        return "\n".join(lines)

    def _state(self, record: dict[str, Any]) -> str:
        """What the kernel says of a rank's process, when it is on this machine."""
        if record["host"] != self._own["host"]:
            return ""
        process = _process_of(record)
        return process.describe() if process else "gone"

    def _kill(self, record: dict[str, Any] | None) -> None:
        if record and record["host"] == self._own["host"]:
            process = _process_of(record)
            if process and process.parent == os.getppid():
                try:
                    os.kill(record["pid"], signal.SIGKILL)
                except OSError:
                    pass


def _process_of(record: dict[str, Any]) -> processes.Process | None:
    """Of a rank on this machine; None when it has ended, whatever has its number now."""
    process = processes.look_at(record["pid"])
    return process if processes.started(record["pid"]) == record["started"] else None


def forget_earlier(run: Path) -> None:
    """The files of an earlier start (by the rank that has opened the run, before the others write)."""
    (run / REPORT).unlink(missing_ok=True)
    (run / FOLDER).mkdir(exist_ok=True)
    for path in (run / FOLDER).glob("rank-*.json"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Written in place, so that NFS shows what is new when it is opened; a reader that comes in between tries again."""
    for _ in range(5):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            return None
        except ValueError:
            time.sleep(0.02)
    return None


def _claim(path: Path, content: dict[str, Any]) -> bool:
    """Write the file unless another rank has; True when this rank did."""
    own = path.with_name(f".{path.name}.{content['found_by']}")
    try:
        own.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # no room, no links: then it is said twice rather than never
        return True
    finally:
        own.unlink(missing_ok=True)
    return True


def _with_source(frame: str) -> str:
    place = frame.rpartition(" in ")[0]
    file, _, line = place.rpartition(":")
    source = linecache.getline(file, int(line)).strip()
    return f"{frame}: {source}" if source else frame
