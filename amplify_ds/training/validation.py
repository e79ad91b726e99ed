"""Validation with fixed masks under two protocols, compared with a baseline of residue frequencies.

The masked positions of a protein depend only on its own tokens (data/masking.py), so they are the same in every
packing, for every model and at every step. The two protocols mask the same positions but differ in the input there:

- `published`: 80 % <mask>, 10 % a random token, 10 % the residue itself, as in the validation of NVIDIA and the
  official code (4.23 for 120M, 3.05 for 350M). A tenth of the targets are visible, so copying alone scores well.
- `mask_only`: every masked position is <mask>.

The baseline is the best prediction from residue frequencies without any neighbours. It uses the frequencies of the
evaluated set itself, which give the lowest loss of all fixed frequencies. At <mask> the prediction is p(b). At a token
a other than <mask>, Bayes' rule over "unchanged" (share u) and "random" (share r over V tokens) gives
    P(b | a) ∝ p(b)·(u·[a = b] + r / V).

Standard errors treat windows (proteins, or parts of long ones) as independent: for a mean loss Σ l_w / Σ n_w,
SE² = W/(W − 1) · Σ (l_w − mean·n_w)² / (Σ n_w)². Members of a family resemble each other, so the true uncertainty about
proteins in general is greater.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F

from amplify_ds.data.loader import evaluation_batches
from amplify_ds.data.masking import PROTOCOLS
from amplify_ds.data.shards import Shards
from amplify_ds.training.ranks import Ranks
from amplify_ds.vocab import MASK, SPECIAL, TOKENS

FRACTION = 0.15  # of the residues, under both protocols, independent of the settings of training


@dataclass(frozen=True)
class Score:
    """The scores of a validation set under one protocol. Losses are in nats per target.

    gain: baseline_loss − loss; gain_se: its standard error from paired differences.
    """

    protocol: str
    loss: float
    loss_se: float
    accuracy: float
    baseline_loss: float
    baseline_loss_se: float
    gain: float
    gain_se: float
    targets: int
    windows: int

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def baseline_perplexity(self) -> float:
        return perplexity(self.baseline_loss)

    def as_dict(self) -> dict:
        return {**asdict(self), "perplexity": self.perplexity, "baseline_perplexity": self.baseline_perplexity}

    def describe(self) -> str:
        """Return two lines of text: perplexities of model and baseline with standard errors, and their difference."""
        standard_errors = abs(self.gain) / self.gain_se if self.gain_se else math.nan
        title = "80/10/10 masking, as published" if self.protocol == "published" else "<mask> only"
        return (
            f"{title}: perplexity {self.perplexity:.3f} ± {self.perplexity * self.loss_se:.3f}, accuracy "
            f"{self.accuracy:.1%}; residue frequencies alone {self.baseline_perplexity:.3f} ± "
            f"{self.baseline_perplexity * self.baseline_loss_se:.3f}\n"
            f"    {abs(self.gain):.4f} ± {self.gain_se:.4f} nats {'below' if self.gain >= 0 else 'above'} the "
            f"frequencies ({standard_errors:.0f} standard errors)"
        )


def perplexity(loss: float) -> float:
    """Return exp(loss) for a loss in nats, limited so that it does not overflow."""
    return math.exp(min(loss, 700.0))


def evaluate(
    logits: Callable[..., torch.Tensor],
    shards: Shards,
    protocol: str,
    ranks: Ranks,
    max_rows: int = 0,
    micro_rows: int = 1,
    progress: Callable[[int], object] = lambda rows: None,
    targets: np.ndarray | None = None,
) -> Score:
    """Return the score of a model on the first `max_rows` rows (0: all). Must be called on every rank.

    logits: function from model inputs to logits [M, V]. progress: called with the number of rows after each batch.
    targets: bool [V], the tokens to score (default: all that can be masked); the masks do not depend on it.
    """
    rows = min(max_rows, shards.num_rows) if max_rows else shards.num_rows
    frequencies = residue_frequencies(shards)
    scored = np.ones(len(TOKENS), bool) if targets is None else targets
    frequencies = np.where(scored, frequencies, 0) / frequencies[scored].sum()
    sums = np.zeros((4, shards.window_starts(rows)[-1]))  # of each window: targets, loss, correct, baseline loss
    for item in evaluation_batches(shards, protocol, FRACTION, rows, micro_rows, ranks.rank, ranks.world_size):
        out = logits(**item.batch.to(ranks.device).model_inputs()).float().cpu()
        if not item.counted:
            continue
        kept = torch.from_numpy(scored)[item.batch.labels]
        out, labels = out[kept], item.batch.labels[kept]
        input_tokens = item.batch.input_ids[item.batch.masked_positions].numpy()[kept.numpy()]
        measures = (
            np.ones(len(labels)),
            F.cross_entropy(out, labels, reduction="none").numpy(),
            (out.argmax(-1) == labels).numpy(),
            -np.log(baseline(frequencies, input_tokens, protocol)[np.arange(len(labels)), labels.numpy()]),
        )
        for row, measure in zip(sums, measures):
            np.add.at(row, item.windows[kept.numpy()], measure)
        progress(micro_rows)
    total = ranks.sum(torch.from_numpy(sums).to(ranks.device)).cpu().numpy()
    targets, losses, correct, baseline_losses = total
    loss, loss_se = _mean(losses, targets)
    baseline_loss, baseline_loss_se = _mean(baseline_losses, targets)
    gain, gain_se = _mean(baseline_losses - losses, targets)
    return Score(
        protocol=protocol,
        loss=loss,
        loss_se=loss_se,
        accuracy=float(correct.sum() / targets.sum()),
        baseline_loss=baseline_loss,
        baseline_loss_se=baseline_loss_se,
        gain=gain,
        gain_se=gain_se,
        targets=int(targets.sum()),
        windows=int((targets > 0).sum()),
    )


def residue_frequencies(shards: Shards) -> np.ndarray:
    """Return [V] the share of each token among those that can be masked (not <pad>, <bos>, <eos>)."""
    counts = np.asarray(shards.manifest["token_counts"], float)
    for token in ("<pad>", "<bos>", "<eos>"):
        counts[SPECIAL.index(token)] = 0
    return counts / counts.sum()


def baseline(frequencies: np.ndarray, input_tokens: np.ndarray, protocol: str) -> np.ndarray:
    """Return [M, V] the baseline's probabilities at masked positions whose input is `input_tokens` [M]."""
    mask_share, random_share = PROTOCOLS[protocol]
    size = len(TOKENS)
    likelihood = np.full((size, size), random_share / size)  # of the input token (row), given the residue (column)
    likelihood[np.diag_indices(size)] += 1 - mask_share - random_share
    likelihood[MASK] = mask_share + random_share / size
    joint = frequencies * likelihood[input_tokens]
    return joint / joint.sum(1, keepdims=True)


def _mean(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error of Σ sums / Σ counts, with independent entries."""
    used = counts > 0
    sums, counts = sums[used], counts[used]
    if not len(counts):
        return math.nan, math.nan
    mean = sums.sum() / counts.sum()
    spread = ((sums - mean * counts) ** 2).sum() * len(counts) / max(1, len(counts) - 1)
    return float(mean), float(math.sqrt(spread) / counts.sum())
