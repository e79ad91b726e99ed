"""What happens when a step goes wrong: a gradient that is not finite, a loss that jumps.

Not finite: the update is not applied, the batch is used up, the schedule stays where it is. The rows of the batch are
written to RUN/skipped_rows.jsonl. Jump: a step's loss lies more than a set number of standard deviations above the
mean of the last `WINDOW` steps; the rows with the highest losses are written to RUN/loss_spikes.jsonl. Both files are
what `--skip-rows` reads. A resumed run may write a line again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from amplify_ds.data.shard_writer import writing

SKIPPED, SPIKES = "skipped_rows.jsonl", "loss_spikes.jsonl"
WINDOW = 256  # steps whose losses a new one is compared with
FEWEST = 64  # steps before there is anything to compare with
RESPONSIBLE = 8  # rows that are named for a spike


def find_spikes(recent: Sequence[float], losses: Sequence[float], deviations: float) -> tuple[list[int], list[float]]:
    """Return which of `losses` jump, and the losses to compare the next ones with. deviations: 0 switches it off."""
    recent, found = list(recent), []
    for number, loss in enumerate(losses):
        if deviations and len(recent) >= FEWEST:
            limit = statistics.fmean(recent) + deviations * statistics.stdev(recent)
            if loss > limit:
                found.append(number)
        recent = [*recent, loss][-WINDOW:]
    return found, recent


def highest(row_losses: Sequence[float]) -> list[int]:
    """Return the places of the rows with the highest losses, the highest first."""
    return sorted(range(len(row_losses)), key=lambda place: -row_losses[place])[:RESPONSIBLE]


def append(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Add JSON lines to a file."""
    with writing(file), open(file, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)
