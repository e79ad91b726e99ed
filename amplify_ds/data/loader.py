"""From shards to batches: what the model reads at each step is a pure function of (seed, step).

The training order is endless: position p of the stream is a row of one of the sources, given by mixture.py. Batch b of
the run (that of optimizer step b + 1) reads the positions [b·G, (b + 1)·G), a global batch of G rows; rank r of W takes
[r·G // W, (r + 1)·G // W) of them, in micro batches. All ranks compute equally many rows: where W does not divide G,
some compute rows of padding, which have no targets. So the state of the stream is one integer, and it is the same
for every number of ranks, of loader workers and of rows per micro batch. Rows that a run leaves out from some batch on
are replaced by others (skips.py). A row's mask is keyed by (seed, epoch, row) and its source.

Evaluation reads every row once, split over the ranks, with masks that only depend on each protein (masking.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from amplify_ds.data import masking
from amplify_ds.data.mixture import Mixture, Places
from amplify_ds.data.shards import Shards
from amplify_ds.data.skips import Skips
from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import EOS, PAD

_AHEAD = 64  # micro batches whose rows are looked up at once: as quick as for one
SEGMENT_MULTIPLE = 64  # cu_seqlens is filled up with empty segments, so that its size hardly ever changes


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end: T = rows · row_tokens tokens in S segments, M slots for masked positions."""

    input_ids: torch.Tensor  # [T] int64, masks applied
    position_ids: torch.Tensor  # [T] int64, from 0 in each segment
    cu_seqlens: torch.Tensor  # [S + 1] int32, always on the CPU
    max_seqlen: int
    masked_positions: torch.Tensor  # [M] int64, places in input_ids
    labels: torch.Tensor  # [M] int64, -100 in an unused slot
    tokens: int  # real ones: no padding
    residues: int  # real ones: neither padding nor <bos>, <eos>
    targets: int  # labels that are not -100

    def model_inputs(self) -> dict:
        """The keyword arguments of the model's forward."""
        names = ("input_ids", "position_ids", "cu_seqlens", "max_seqlen", "masked_positions")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> PackedBatch:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> PackedBatch:  # called by DataLoader
        return replace(self._each(torch.Tensor.pin_memory), cu_seqlens=self.cu_seqlens.pin_memory())

    def _each(self, move) -> PackedBatch:
        names = [f.name for f in fields(self) if f.name != "cu_seqlens" and torch.is_tensor(getattr(self, f.name))]
        return replace(self, **{name: move(getattr(self, name)) for name in names})


def pack(rows: list[tuple[np.ndarray, np.ndarray]], masks: list[tuple], max_length: int) -> PackedBatch:
    """Join rows (tokens [row_tokens], lengths [segments]) and their masks (input_ids, positions, labels)."""
    row_tokens = len(rows[0][0])
    lengths = np.concatenate([_cover(lengths, row_tokens, max_length) for _, lengths in rows])
    ends = np.cumsum(lengths)
    total = row_tokens * len(rows)
    cu_seqlens = np.full(1 + -(-len(ends) // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE, total, dtype=np.int32)
    cu_seqlens[0], cu_seqlens[1 : 1 + len(ends)] = 0, ends
    positions = np.arange(total)
    positions -= np.repeat(ends - lengths, lengths)
    masked = np.concatenate([places + i * row_tokens for i, (_, places, _) in enumerate(masks)])
    labels = np.concatenate([mask[2] for mask in masks])
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([mask[0] for mask in masks]).astype(np.int64)),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=max_length,
        masked_positions=torch.from_numpy(masked),
        labels=torch.from_numpy(labels),
        tokens=sum(int(lengths.sum()) for _, lengths in rows),
        residues=sum(int(np.count_nonzero(tokens > EOS)) for tokens, _ in rows),
        targets=int(np.count_nonzero(labels >= 0)),
    )


def _cover(lengths: np.ndarray, row_tokens: int, max_length: int) -> np.ndarray:
    """Segment lengths that cover the whole row: the padding at its end becomes segments of its own."""
    whole, rest = divmod(row_tokens - int(lengths.sum()), max_length)
    return np.array([*lengths.tolist(), *[max_length] * whole, *[rest] * (rest > 0)], dtype=np.int64)


@dataclass(frozen=True)
class BatchSplit:
    """How the global batch is cut: `accumulation` micro batches of `micro_rows` rows on each of `world_size` ranks."""

    global_rows: int
    micro_rows: int
    accumulation: int
    rank: int
    world_size: int

    @property
    def share(self) -> range:
        """The rows of the global batch that are this rank's."""
        return range(
            self.rank * self.global_rows // self.world_size, (self.rank + 1) * self.global_rows // self.world_size
        )

    @property
    def computed_rows(self) -> int:
        """Rows that all ranks compute in a step: the global batch, and the padding where it does not divide."""
        return self.world_size * self.accumulation * self.micro_rows

    def rows(self, index: int) -> int:
        """How many of the rows of micro batch `index` are of the batch; those after them are padding."""
        return max(0, min(self.micro_rows, len(self.share) - index % self.accumulation * self.micro_rows))

    def positions(self, index: int) -> np.ndarray:
        """Stream positions [micro_rows] of this rank's micro batch `index`, counted over all steps. Padding repeats the
        last position of the rank's share.
        """
        step, part = divmod(index, self.accumulation)
        begin = self.share.start + part * self.micro_rows
        within = np.minimum(np.arange(begin, begin + self.micro_rows), self.share.stop - 1)
        return step * self.global_rows + within


class TrainingBatches(Dataset):
    """Micro batch `index` of one rank. fraction, mask_share, random_share: see config.Masking; skips: see skips.py."""

    def __init__(
        self,
        mixture: Mixture,
        split: BatchSplit,
        seed: int,
        fraction: float,
        mask_share: float,
        random_share: float,
        skips: Iterable[dict] = (),
    ):
        self.mixture, self.split, self.seed = mixture, split, seed
        self.shares = (fraction, mask_share, random_share)
        self.skips = Skips(mixture, skips)
        self._looked_up: tuple[int, Places] | None = None  # the last block of _AHEAD micro batches, by its number
        manifests = [source.shards.manifest for source in mixture.sources]
        self.slots = masking.masked_per_row(manifests, mixture.weights.tolist(), fraction)
        if self.slots < 1:
            raise AmplifyError(
                f"masking.fraction {fraction} selects no token of the {mixture.row_tokens} of a row of "
                f"{', '.join(str(source.shards.path) for source in mixture.sources)}"
            )

    def places(self, index: int) -> Places:
        """Where the rows of micro batch `index` come from, in order."""
        block, within = divmod(index, _AHEAD)
        if self._looked_up is None or self._looked_up[0] != block:
            positions = np.concatenate([self.split.positions(block * _AHEAD + i) for i in range(_AHEAD)])
            self._looked_up = block, self._at(positions)
        part = slice(within * self.split.micro_rows, (within + 1) * self.split.micro_rows)
        return Places(*(column[part] for column in self._looked_up[1]))

    def _at(self, positions: np.ndarray) -> Places:
        """What is read at these positions of the stream, integers [n]; rows that are left out are replaced."""
        found = self.mixture.at(positions, self.seed)
        return self.skips.replace(found, positions // self.split.global_rows, self.seed)

    def rows_of(self, batch: int) -> list[dict[str, Any]]:
        """The rows of a global batch, of all ranks and in order: {"source": name, "row", "epoch", "batch"}."""
        positions = batch * self.split.global_rows + np.arange(self.split.global_rows)
        found = self._at(positions)
        return [
            {"source": self.mixture.names[source], "row": row, "epoch": epoch, "batch": batch}
            for source, row, epoch in zip(found.sources.tolist(), found.rows.tolist(), found.epochs.tolist())
        ]

    def __getitem__(self, index: int) -> PackedBatch:
        content, masks = [], []
        sources, _, epochs, rows = self.places(index)
        used = self.split.rows(index)
        for number, (source, epoch, row) in enumerate(zip(sources.tolist(), epochs.tolist(), rows.tolist())):
            if number < used:
                tokens, lengths = self.mixture.sources[source].shards.row(row)
            else:
                tokens, lengths = np.full(self.mixture.row_tokens, PAD, np.uint8), np.zeros(0, np.uint16)
            key = (self.seed, epoch, row, source) if source else (self.seed, epoch, row)
            content.append((tokens, lengths))
            masks.append(masking.mask_row(tokens, key, self.slots, *self.shares))
        return pack(content, masks, self.mixture.max_length)


@dataclass(frozen=True)
class EvaluationBatch:
    batch: PackedBatch
    windows: np.ndarray  # [M] number of the window that each target belongs to, counted over all evaluated rows
    counted: bool  # False for a repeat that only keeps the ranks in step


def evaluation_batches(
    shards: Shards, protocol: str, fraction: float, rows: int, micro_rows: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """The first `rows` rows, split over the ranks so that every rank yields the same number of batches."""
    window_starts = shards.window_starts(rows)
    groups = [range(i, min(i + micro_rows, rows)) for i in range(0, rows, micro_rows)]
    for turn in range(-(-len(groups) // world_size)):
        number = turn * world_size + rank
        group = groups[min(number, len(groups) - 1)]
        content = [shards.row(i) for i in group]
        masks = [masking.mask_windows(tokens, lengths, fraction, protocol) for tokens, lengths in content]
        windows = [
            window_starts[row] + np.searchsorted(np.cumsum(lengths), mask[1], side="right")
            for row, (_, lengths), mask in zip(group, content, masks)
        ]
        yield EvaluationBatch(pack(content, masks, shards.max_length), np.concatenate(windows), number < len(groups))
