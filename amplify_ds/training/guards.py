"""Guards: react to gradients that are not finite and to jumps of the loss.

If the gradient is not finite, the update is not applied, the batch is skipped and the schedule does not advance. The
rows of the batch are added to RUN/skipped_rows.jsonl. The loss jumps if it is more than a set number of standard
deviations above the mean of the last `WINDOW` steps; the rows with the highest losses are added to
RUN/loss_spikes.jsonl. `--skip-rows` reads both files. A resumed run may write a line a second time.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from amplify_ds.data.shard_writer import writing

SKIPPED, SPIKES = "skipped_rows.jsonl", "loss_spikes.jsonl"
WINDOW = 256  # steps with which a new loss is compared
FEWEST = 64  # steps needed for a comparison
RESPONSIBLE = 8  # rows listed per jump


def find_spikes(recent: Sequence[float], losses: Sequence[float], deviations: float) -> tuple[list[int], list[float]]:
    """Return the indices of `losses` that jump, and the losses to compare the next ones with.

    deviations: number of standard deviations above the mean that counts as a jump; 0 turns this off.
    """
    recent, spikes = list(recent), []
    for number, loss in enumerate(losses):
        if deviations and len(recent) >= FEWEST:
            limit = statistics.fmean(recent) + deviations * statistics.stdev(recent)
            if loss > limit:
                spikes.append(number)
        recent = [*recent, loss][-WINDOW:]
    return spikes, recent


def highest(row_losses: Sequence[float]) -> list[int]:
    """Return the indices of the `RESPONSIBLE` rows with the highest losses, the highest first."""
    return sorted(range(len(row_losses)), key=lambda index: -row_losses[index])[:RESPONSIBLE]


def append(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to a file as JSON lines. Raises AmplifyError if it cannot be written."""
    with writing(file), open(file, "a", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)
