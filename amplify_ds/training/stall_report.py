"""Which ranks hold up the job, from the records of all ranks, and the message about them.

A record is what a rank last wrote (rank_files.py): job, rank, host, pid, step, phase, moves (changes of phase so far),
beat (records written so far), stack (frames as FILE:LINE in FUNCTION, the innermost last).
"""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STALLED = 70  # exit code: a rank stopped responding (EX_SOFTWARE of sysexits.h)
STARTING, FINISHED = "starting", "finished"
ALONE = (STARTING, "waiting for data", "writing the checkpoint")  # phases in which no rank waits for another
COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")  # in the path of a frame: the rank waits for others


@dataclass(frozen=True)
class Verdict:
    """The ranks that hold up the job. silent: whether their processes do not write records any more."""

    ranks: list[int]
    silent: bool
    why: str


def find_culprits(before: Mapping[int, dict], after: Mapping[int, dict], world_size: int) -> Verdict:
    """Return the ranks that hold up the job.

    before, after: {rank: record}, read twice; ranks that have never written a record are missing in both.
    """
    finished = {rank for rank, record in after.items() if record["phase"] == FINISHED}
    silent = [
        rank
        for rank in range(world_size)
        if rank not in finished and after.get(rank, {}).get("beat") == before.get(rank, {}).get("beat")
    ]
    if silent:
        return Verdict(silent, True, "its process does not respond")
    candidates = sorted(rank for rank in after if rank not in finished) or sorted(after)
    why = "all ranks are in the same phase" if len(candidates) > 1 else "its loop does not move"
    for reason, key in (
        ("it is behind the other ranks", lambda record: record["moves"]),
        ("its phase has no collective, and the others wait for it", lambda record: record["phase"] not in ALONE),
        ("its stack is in no collective, and the others wait for it", lambda record: _waits(record["stack"])),
    ):
        least = min(key(after[rank]) for rank in candidates)
        fewer = [rank for rank in candidates if key(after[rank]) == least]
        if len(fewer) < len(candidates):
            candidates, why = fewer, reason
    return Verdict(candidates, False, why)


def _waits(stack: list[str]) -> bool:
    """Return whether the rank is inside a collective."""
    return any(part in frame for frame in stack for part in COLLECTIVES)


def message(
    verdict: Verdict,
    records: Mapping[int, dict[str, Any]],
    states: Mapping[int, str],
    still: float,
    limit: float,
    report: Path,
) -> str:
    """Return the message: a line for each of the first four culprits, with its stack.

    states: the kernel's states of their processes, "" if unknown. still: seconds since the loop moved; limit: the
    setting. report: the file with the records of all ranks.
    """
    lines = [f"error: training has stood still for {still:.0f} s (watchdog.seconds {limit:g})"]
    for rank in verdict.ranks[:4]:
        if (record := records.get(rank)) is None:
            lines.append(f"rank {rank} has written no record since the start: {verdict.why}")
            continue
        lines.append(
            f"rank {rank} on {record['host']} (process {record['pid']}), step {record['step']}, {record['phase']}: "
            f"{verdict.why}{'; it is ' + states[rank] if verdict.silent and states[rank] else ''}"
        )
        lines.append(f"its stack{' when it last wrote it' if verdict.silent else ''}, innermost frame last:")
        lines += [f"    {_with_source(frame)}" for frame in record["stack"][-8:]]
    if more := verdict.ranks[4:]:
        lines.append(f"the same holds for the ranks {', '.join(map(str, more))}")
    lines.append(
        f"Every rank's stack is in {report}. The job ends with code {STALLED}; the same command continues from the "
        "newest checkpoint. If nothing was wrong, raise --watchdog.seconds."
    )
    return "\n".join(lines)


def _with_source(frame: str) -> str:
    file, _, line = frame.rpartition(" in ")[0].rpartition(":")
    source = linecache.getline(file, int(line)).strip()
    return f"{frame}: {source}" if source else frame
