"""Metrics of the steps between two logs: losses, counts, time, memory and FLOPs.

The sums of this rank stay on the device and are copied to the host once, at the log. A step is kept or dropped as a
whole: one whose update was not applied must not enter the means.

Model FLOPs, forward and backward (counted as in PaLM, Chowdhery et al. 2022, appendix B): 6 per token and weight of the
blocks, plus 12·layers·H for every pair of tokens that attend to each other. Padding, recomputation, embedding and
decoder (27 tokens) are not counted.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from amplify_ds.data.loader import PackedBatch
from amplify_ds.model.shape import Shape
from amplify_ds.training.ranks import Ranks

# The micro batches of a step: the losses [rows] of each, its number of correct predictions, and its _HOST_COUNTS.
_MicroBatches = tuple[list[torch.Tensor], list[torch.Tensor], list[list[float]]]
_HOST_COUNTS = ("targets", "residues", "tokens", "positions", "pairs", "waited")


@dataclass(frozen=True)
class Totals:
    """Sums and means over n steps and all ranks.

    positions: tokens including padding. waited: seconds spent waiting for data, summed over the ranks.
    """

    step_losses: list[float]  # [n] mean per target
    loss: float
    accuracy: float
    targets: float
    residues: float
    tokens: float
    positions: float
    pairs: float
    waited: float
    norm: float  # of the gradient of the last step, before clipping
    memory: list[float]  # [ranks] peak bytes: of the GPU, or of the process on a CPU
    seconds: float


class Interval:
    """Sums of this rank over the steps since the last log."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.norm, self.rate = torch.zeros(()), 0.0  # of the last step; the norm may be on the device
        self.began = time.perf_counter()
        self._steps: list[_MicroBatches] = []
        self._batches: list[int] = []
        self.drop()

    def add(self, batch: PackedBatch, row_losses: torch.Tensor, logits: torch.Tensor, waited: float) -> None:
        """Count a micro batch. row_losses: [rows] sums over each row's targets."""
        correct = (logits.detach().argmax(-1) == batch.labels).sum()
        pairs = float(np.square(np.diff(batch.cu_seqlens.numpy()).astype(np.int64)).sum())  # on the host, always
        counts = [batch.targets, batch.residues, batch.tokens, batch.input_ids.numel(), pairs, waited]
        losses, hits, host_counts = self._pending
        losses.append(row_losses.detach())
        hits.append(correct)
        host_counts.append(counts)

    def keep(self, batch: int, norm: torch.Tensor, rate: float) -> None:
        """Count the pending micro batches as an applied step, which read batch number `batch`."""
        self._steps.append(self._pending)
        self._batches.append(batch)
        self.norm, self.rate = norm, rate
        self.drop()

    @property
    def steps(self) -> int:
        return len(self._steps)

    def drop(self) -> None:
        """Forget the pending micro batches, because their step was not applied."""
        self._pending: _MicroBatches = ([], [], [])

    def totals(self) -> Totals:
        """Return the totals over all ranks. This is the only copy from the device.

        Must be called on every rank, after the same number of steps.
        """
        n = self.steps
        losses = [torch.stack([rows.sum() for rows in row_losses]).sum().double() for row_losses, _, _ in self._steps]
        correct = torch.stack([count for _, counts, _ in self._steps for count in counts]).sum().double()
        host = torch.tensor([counts for _, _, micro in self._steps for counts in micro], dtype=torch.float64).sum(0)
        targets = torch.tensor([sum(counts[0] for counts in micro) for _, _, micro in self._steps], dtype=torch.float64)
        memory = torch.zeros(self.ranks.world_size, dtype=torch.float64)
        memory[self.ranks.rank] = peak_memory(self.ranks.device)
        on_host = torch.cat((targets, host, memory)).to(self.ranks.device)
        sums = self.ranks.sum(torch.cat((torch.stack(losses), correct[None], on_host))).tolist()
        step_sums, right, step_targets, rest = sums[:n], sums[n], sums[n + 1 : 2 * n + 1], sums[2 * n + 1 :]
        counted = dict(zip(_HOST_COUNTS, rest))
        return Totals(
            step_losses=[loss / count for loss, count in zip(step_sums, step_targets)],
            loss=sum(step_sums) / counted["targets"],
            accuracy=right / counted["targets"],
            norm=float(self.norm),
            memory=rest[len(_HOST_COUNTS) :],
            seconds=time.perf_counter() - self.began,
            **counted,
        )

    def row_losses(self, step: int) -> tuple[int, torch.Tensor]:
        """Return the batch number of step `step` of the interval, and [rows of this rank] sums of each row's losses."""
        return self._batches[step], torch.cat(self._steps[step][0])


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def model_flops(config: Shape, tokens: float, pairs: float) -> float:
    """Return the FLOPs of forward and backward. pairs: number of ordered pairs of tokens that attend to each other."""
    size = config.hidden_size
    weights = config.num_hidden_layers * (4 * size * size + 3 * size * config.ffn_size)
    return 6.0 * weights * tokens + 12.0 * config.num_hidden_layers * size * pairs


def device_flops(device: torch.device, precision: str) -> float:
    """Return the peak FLOP/s of this device: the best of several timed matrix products.

    fp8 is compared with bf16 products too, so that its gain shows as a larger share.
    """
    side, rounds = (8192, 10) if device.type == "cuda" else (1024, 3)
    dtype = torch.bfloat16 if precision != "fp32" and device.type == "cuda" else torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(rounds):
        _synchronize(device)
        began = time.perf_counter()
        a @ a
        _synchronize(device)
        best = max(best, 2.0 * side**3 / (time.perf_counter() - began))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
