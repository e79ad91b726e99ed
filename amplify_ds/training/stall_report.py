"""Who holds everybody up, from what the ranks wrote of themselves, and how that is said.

A record is what a rank last wrote (rank_files.py): job, rank, host, pid, step, phase, moves (places of the loop passed
so far), beat (records written so far), stack (frames as FILE:LINE in FUNCTION, the innermost last).
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
    ranks: list[int]  # the culprits, the one to look at first in front
    silent: bool
    why: str


def judge(before: Mapping[int, dict], after: Mapping[int, dict], world_size: int) -> Verdict:
    """The verdict on everybody's records read twice, {rank: record}; a rank without a record is missing in both."""
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


def message(
    verdict: Verdict,
    records: Mapping[int, dict[str, Any]],
    states: Mapping[int, str],
    still: float,
    limit: float,
    report: Path,
) -> str:
    """What to print: a line for each of the first four culprits, with its stack.

    states: what the kernel says of their processes, "" where it cannot be asked. still, limit: seconds without a move,
    and how many are allowed. report: the file with everybody's record.
    """
    lines = [f"error: training has stood still for {still:.0f} s (watchdog.seconds {limit:g})"]
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
        f"Every rank's stack is in {report}. The job ends with code {STALLED}; the same command continues from the "
        "newest checkpoint. If nothing was wrong, raise --watchdog.seconds."
    )
    return "\n".join(lines)


def _with_source(frame: str) -> str:
    file, _, line = frame.rpartition(" in ")[0].rpartition(":")
    source = linecache.getline(file, int(line)).strip()
    return f"{frame}: {source}" if source else frame
