"""Rebuild the batch of a step from a run directory on one CPU, without ranks, DeepSpeed or the model.

A batch is a pure function of the settings in run.json, the training shards and the index of the batch (data/loader.py).
The state of the newest checkpoint tells which batches and rows were skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from amplify_ds.config import RunConfig
from amplify_ds.data.loader import BatchSplit, PackedBatch, TrainingBatches
from amplify_ds.data.masking import IGNORED
from amplify_ds.errors import AmplifyError
from amplify_ds.training import checkpoint, run_directory
from amplify_ds.training.derived import split_batch, training_sources


def batch_index(step: int, state: Mapping) -> int:
    """Return the index, from 0, of the batch of optimizer step `step`, from 1.

    state: content of a checkpoint's state.json. Its progress["skipped"] has the indices of skipped batches, which
    belong to no step.
    """
    index = step - 1
    for skipped in sorted(state.get("progress", {}).get("skipped", [])):
        index += skipped <= index
    return index


@dataclass(frozen=True)
class Window:
    """A window, as it was in the model's input."""

    tokens: np.ndarray  # int64 [n], before masking
    input_ids: np.ndarray  # int64 [n], masks applied
    positions: np.ndarray  # int64 [m], positions of the targets in the window, ascending

    @property
    def labels(self) -> np.ndarray:
        """int64 [m], the tokens at `positions`."""
        return self.tokens[self.positions]


@dataclass(frozen=True)
class Row:
    number: int  # in the batch
    source: str
    row: int  # in the shards of the source
    epoch: int  # of the source
    tokens: int
    residues: int
    windows: list[Window]

    @property
    def targets(self) -> int:
        return sum(len(window.positions) for window in self.windows)


@dataclass(frozen=True)
class Batch:
    step: int
    index: int
    row_tokens: int
    sources: list[str]  # of every row of the batch
    rows: list[Row]  # the requested ones


def rebuild(run: Path, step: int, rows: Sequence[int] = (), data: Sequence[str] = ()) -> Batch:
    """Return the global batch of `step` (from 1) of the run at `run`, with the rows numbered `rows`, or all.

    data: value of data.train, if the shards have moved. Raises AmplifyError if the shards are not those of the run.
    """
    description = run_directory.read_description(run)
    settings = description["settings"]
    try:
        config = RunConfig.model_validate(
            {**settings, "data": {**settings["data"], "train": list(data)}} if data else settings
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise AmplifyError(
            f"{run / run_directory.DESCRIPTION}: its settings are invalid in this version of amplify_ds: {error}"
        ) from None
    mixture = training_sources(config)
    if mixture.binding() != description["binding"].get("training data"):
        raise AmplifyError(
            f"{', '.join(config.data.train)}: not the data that {run} was trained on (names, weights or rows differ); "
            "give its shards with --data.train [NAME=]DIR[:WEIGHT] …"
        )
    saved = checkpoint.newest(run, checkpoint.open_checkpoint)  # not verified, because only its state is used
    state = saved.state if saved else {}
    global_rows = split_batch(config, mixture.row_tokens, 0, 1).global_rows
    if outside := [number for number in rows if not 0 <= number < global_rows]:
        raise AmplifyError(f"--rows {outside[0]}: the batch has the rows 0 to {global_rows - 1}")
    if step < 1:
        raise AmplifyError(f"--step {step}: the first step is 1")
    batches = TrainingBatches(
        mixture,
        BatchSplit(global_rows, 1, global_rows, 0, 1),
        config.training.seed,
        **config.masking.model_dump(),
        skips=state.get("skips", []),
    )
    index = batch_index(step, state)
    places = [batches.rows(index * global_rows + number) for number in range(global_rows)]
    names = [mixture.names[int(place.sources[0])] for place in places]
    chosen = []
    for number in rows or range(global_rows):
        batch, place = batches[index * global_rows + number], places[number]
        chosen.append(
            Row(
                number,
                names[number],
                int(place.rows[0]),
                int(place.epochs[0]),
                batch.tokens,
                batch.residues,
                windows_of(batch),
            )
        )
    return Batch(step, index, mixture.row_tokens, names, chosen)


def windows_of(batch: PackedBatch) -> list[Window]:
    """Return the windows of a batch of one row, without padding."""
    input_ids, used = batch.input_ids.numpy(), batch.labels.numpy() != IGNORED
    positions = batch.masked_positions.numpy()[used]
    tokens = input_ids.copy()
    tokens[positions] = batch.labels.numpy()[used]
    bounds = np.unique(batch.cu_seqlens.numpy())
    return [
        Window(tokens[a:b], input_ids[a:b], positions[(positions >= a) & (positions < b)] - a)
        for a, b in zip(bounds, bounds[1:])
        if b <= batch.tokens
    ]
