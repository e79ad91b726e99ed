"""What is measured between two logs, and what it cost.

Sums of this rank stay on the device, step by step, and are copied to the host once, at the log. A step is kept or
dropped as a whole: one whose update was not applied must not enter the means.

FLOPs of the model, forward and backward (PaLM's counting, Chowdhery et al. 2022, appendix B): 6 a token and weight of
the blocks, and 12·layers·H for every pair of tokens that attend to each other; nothing for padding, for recomputation,
for embedding and decoder (27 tokens).
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

# Of a step: for each micro batch its [rows] losses, its right predictions, and the counts of _HOST.
_MicroBatches = tuple[list[torch.Tensor], list[torch.Tensor], list[list[float]]]
_HOST = ("targets", "residues", "tokens", "places", "pairs", "waited")


@dataclass(frozen=True)
class Totals:
    """Over all ranks, of n steps. places: for tokens, padding counted. waited: seconds for data, all ranks together."""

    step_losses: list[float]  # [n] mean a target
    loss: float
    accuracy: float
    targets: float
    residues: float
    tokens: float
    places: float
    pairs: float
    waited: float
    norm: float  # of the gradient of the last step, before clipping
    memory: list[float]  # [ranks] peak bytes: of the GPU, or of the process on a CPU
    seconds: float


class Interval:
    """Sums of the steps since the last log, of this rank."""

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
        losses, hits, of_batches = self._pending
        losses.append(row_losses.detach())
        hits.append(correct)
        of_batches.append(counts)

    def keep(self, batch: int, norm: torch.Tensor, rate: float) -> None:
        """The step, which read that batch, was applied."""
        self._steps.append(self._pending)
        self._batches.append(batch)
        self.norm, self.rate = norm, rate
        self.drop()

    @property
    def steps(self) -> int:
        return len(self._steps)

    def drop(self) -> None:
        """The step was not applied: forget its micro batches."""
        self._pending: _MicroBatches = ([], [], [])

    def totals(self) -> Totals:
        """Return the sums over all ranks. This is the only copy from the device.

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
        found = self.ranks.sum(torch.cat((torch.stack(losses), correct[None], on_host))).tolist()
        sums, right, of_steps, rest = found[:n], found[n], found[n + 1 : 2 * n + 1], found[2 * n + 1 :]
        counted = dict(zip(_HOST, rest))
        return Totals(
            step_losses=[loss / count for loss, count in zip(sums, of_steps)],
            loss=sum(sums) / counted["targets"],
            accuracy=right / counted["targets"],
            norm=float(self.norm),
            memory=rest[len(_HOST) :],
            seconds=time.perf_counter() - self.began,
            **counted,
        )

    def row_losses(self, step: int) -> tuple[int, torch.Tensor]:
        """Of step number `step` of the interval: its batch, and [rows of this rank] sums over each row's targets."""
        return self._batches[step], torch.cat(self._steps[step][0])


def peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def model_flops(config: Shape, tokens: float, pairs: float) -> float:
    """Of a forward and backward over `tokens` tokens, of which `pairs` ordered pairs attend to each other."""
    size = config.hidden_size
    weights = config.num_hidden_layers * (4 * size * size + 3 * size * config.ffn_size)
    return 6.0 * weights * tokens + 12.0 * config.num_hidden_layers * size * pairs


def device_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of this device, as the best of some matrix products shows them: what a rank could do at most.

    In bf16 for fp8 too: what is gained over it shows as a larger share.
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
