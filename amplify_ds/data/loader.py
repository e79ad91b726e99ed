"""From shards to batches: the batch of each step is a pure function of (seed, step).

The stream of training rows is endless; mixture.py gives the row at position p. Batch b of a run (optimizer step b + 1)
reads the positions [b·G, (b + 1)·G), a global batch of G rows. Rank r of W takes [r·G // W, (r + 1)·G // W) of them, in
micro batches. All ranks compute the same number of rows: if W does not divide G, some compute rows of padding, which
have no targets. So the state of the stream is one integer, the same for any number of ranks, of loader workers and of
rows per micro batch. Rows that a run skips from some batch on are replaced by others (skips.py). The mask of a row
depends on (seed, epoch, row, source).

Evaluation reads every row once, split over the ranks, with masks that depend on each protein only (masking.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from amplify_ds.data import masking
from amplify_ds.data.mixture import Mixture, StreamRows
from amplify_ds.data.shards import Shards
from amplify_ds.data.skips import Skips
from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import EOS, PAD

_BLOCK = 64  # micro batches whose rows are looked up together, which takes no longer than for one
SEGMENT_MULTIPLE = 64  # cu_seqlens is padded with empty segments, so that its size rarely changes


@dataclass(frozen=True)
class PackedBatch:
    """Concatenated rows: T = rows · row_tokens tokens in S segments, M slots for masked positions."""

    input_ids: torch.Tensor  # [T] int64, masks applied
    position_ids: torch.Tensor  # [T] int64, from 0 in each segment
    cu_seqlens: torch.Tensor  # [S + 1] int32, always on the CPU
    max_seqlen: int
    masked_positions: torch.Tensor  # [M] int64, indices into input_ids
    labels: torch.Tensor  # [M] int64, -100 in an unused slot
    tokens: int  # without padding
    residues: int  # without padding, <bos> and <eos>
    targets: int  # labels other than -100

    def model_inputs(self) -> dict:
        """Return the keyword arguments of the model's forward."""
        names = ("input_ids", "position_ids", "cu_seqlens", "max_seqlen", "masked_positions")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> PackedBatch:
        return self._map_tensors(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> PackedBatch:  # called by DataLoader
        return replace(self._map_tensors(torch.Tensor.pin_memory), cu_seqlens=self.cu_seqlens.pin_memory())

    def _map_tensors(self, function) -> PackedBatch:
        """Return a copy with `function` applied to every tensor except cu_seqlens."""
        names = [f.name for f in fields(self) if f.name != "cu_seqlens" and torch.is_tensor(getattr(self, f.name))]
        return replace(self, **{name: function(getattr(self, name)) for name in names})


def collate(rows: list[tuple[np.ndarray, np.ndarray]], masks: list[tuple], max_length: int) -> PackedBatch:
    """Return the batch of rows (tokens [row_tokens], lengths [windows]) and masks (input_ids, positions, labels)."""
    row_tokens = len(rows[0][0])
    lengths = np.concatenate([_with_padding(lengths, row_tokens, max_length) for _, lengths in rows])
    ends = np.cumsum(lengths)
    total = row_tokens * len(rows)
    cu_seqlens = np.full(1 + -(-len(ends) // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE, total, dtype=np.int32)
    cu_seqlens[0], cu_seqlens[1 : 1 + len(ends)] = 0, ends
    position_ids = np.arange(total)
    position_ids -= np.repeat(ends - lengths, lengths)
    masked = np.concatenate([positions + i * row_tokens for i, (_, positions, _) in enumerate(masks)])
    labels = np.concatenate([mask[2] for mask in masks])
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([mask[0] for mask in masks]).astype(np.int64)),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=max_length,
        masked_positions=torch.from_numpy(masked),
        labels=torch.from_numpy(labels),
        tokens=sum(int(lengths.sum()) for _, lengths in rows),
        residues=sum(int(np.count_nonzero(tokens > EOS)) for tokens, _ in rows),
        targets=int(np.count_nonzero(labels >= 0)),
    )


def _with_padding(lengths: np.ndarray, row_tokens: int, max_length: int) -> np.ndarray:
    """Return the lengths of segments that cover the whole row: the padding at its end becomes segments too."""
    whole, rest = divmod(row_tokens - int(lengths.sum()), max_length)
    return np.array([*lengths.tolist(), *[max_length] * whole, *[rest] * (rest > 0)], dtype=np.int64)


@dataclass(frozen=True)
class BatchSplit:
    """The split of a global batch: `accumulation` micro batches of `micro_rows` rows on each of `world_size` ranks."""

    global_rows: int
    micro_rows: int
    accumulation: int
    rank: int
    world_size: int

    @property
    def share(self) -> range:
        """The rows of the global batch that this rank computes."""
        return range(
            self.rank * self.global_rows // self.world_size, (self.rank + 1) * self.global_rows // self.world_size
        )

    @property
    def computed_rows(self) -> int:
        """The number of rows that all ranks compute in a step: the global batch, and rows of padding."""
        return self.world_size * self.accumulation * self.micro_rows

    def rows(self, index: int) -> int:
        """Return how many rows of micro batch `index` belong to the global batch; the rows after them are padding."""
        return max(0, min(self.micro_rows, len(self.share) - index % self.accumulation * self.micro_rows))

    def positions(self, index: int) -> np.ndarray:
        """Return the stream positions [micro_rows] of this rank's micro batch `index`, counted over all steps.

        Padding repeats the last position of the rank's share.
        """
        step, part = divmod(index, self.accumulation)
        begin = self.share.start + part * self.micro_rows
        within = np.minimum(np.arange(begin, begin + self.micro_rows), self.share.stop - 1)
        return step * self.global_rows + within


class TrainingBatches(Dataset):
    """The micro batches of one rank, by index over all steps.

    fraction, mask_share, random_share: see config.Masking. skips: see skips.py.
    """

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
        self._cached: tuple[int, StreamRows] | None = None  # number and rows of the last block of micro batches
        manifests = [source.shards.manifest for source in mixture.sources]
        self.slots = masking.masked_per_row(manifests, mixture.weights.tolist(), fraction)
        if self.slots < 1:
            raise AmplifyError(
                f"masking.fraction {fraction} is too small: it selects none of the {mixture.row_tokens} tokens of a "
                f"row of {', '.join(str(source.shards.path) for source in mixture.sources)}"
            )

    def rows(self, index: int) -> StreamRows:
        """Return the rows of micro batch `index`, in order."""
        block, within = divmod(index, _BLOCK)
        if self._cached is None or self._cached[0] != block:
            positions = np.concatenate([self.split.positions(block * _BLOCK + i) for i in range(_BLOCK)])
            self._cached = block, self._at(positions)
        part = slice(within * self.split.micro_rows, (within + 1) * self.split.micro_rows)
        return StreamRows(*(column[part] for column in self._cached[1]))

    def _at(self, positions: np.ndarray) -> StreamRows:
        """Return the rows at these positions of the stream, integers [n], with skipped rows replaced."""
        rows = self.mixture.at(positions, self.seed)
        return self.skips.replace(rows, positions // self.split.global_rows, self.seed)

    def global_batch(self, batch: int) -> list[dict[str, Any]]:
        """Return the rows of global batch `batch` over all ranks, as {"source": name, "row", "epoch", "batch"}."""
        positions = batch * self.split.global_rows + np.arange(self.split.global_rows)
        rows = self._at(positions)
        return [
            {"source": self.mixture.names[source], "row": row, "epoch": epoch, "batch": batch}
            for source, row, epoch in zip(rows.sources.tolist(), rows.rows.tolist(), rows.epochs.tolist())
        ]

    def __getitem__(self, index: int) -> PackedBatch:
        content, masks = [], []
        sources, _, epochs, rows = self.rows(index)
        used = self.split.rows(index)
        for number, (source, epoch, row) in enumerate(zip(sources.tolist(), epochs.tolist(), rows.tolist())):
            if number < used:
                tokens, lengths = self.mixture.sources[source].shards.row(row)
            else:
                tokens, lengths = np.full(self.mixture.row_tokens, PAD, np.uint8), np.zeros(0, np.uint16)
            key = (self.seed, epoch, row, source) if source else (self.seed, epoch, row)
            content.append((tokens, lengths))
            masks.append(masking.mask_row(tokens, key, self.slots, *self.shares))
        return collate(content, masks, self.mixture.max_length)


@dataclass(frozen=True)
class EvaluationBatch:
    batch: PackedBatch
    windows: np.ndarray  # [M] index of the window of each target, counted over all evaluated rows
    counted: bool  # False for a repeated batch, which keeps the ranks in step


def evaluation_batches(
    shards: Shards, protocol: str, fraction: float, rows: int, micro_rows: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """Yield this rank's batches of the first `rows` rows; every rank yields the same number of batches."""
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
        batch = collate(content, masks, shards.max_length)
        yield EvaluationBatch(batch, np.concatenate(windows), number < len(groups))
