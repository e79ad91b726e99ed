"""The masks of masked language modelling, as pure functions of the tokens and a key.

Every token except <pad>, <bos> and <eos> is eligible. A `fraction` of the eligible tokens is chosen, uniformly without
replacement: every position gets a random ticket of one byte, and the n eligible positions with the smallest tickets are
chosen. Bytes are fast to draw and to count, but ties are common: among positions that share the largest chosen ticket,
a second ticket of 64 bits decides. Of the chosen tokens, 80 % become <mask>, 10 % a token drawn from all 27, and 10 %
are unchanged (the recipe of BERT and AMPLIFY); the label is always the original token.

Training (`mask_row`): the key is (seed, epoch, row) for the first source, (seed, epoch, row, source) for the others. So
the mask of a row is the same wherever and whenever it is read in an epoch, and differs between epochs. Every row has
the same number K of masked positions, 15 % of the eligible tokens of an average row. So shapes are static, and the mean
over the masked positions of the whole batch is the mean over ranks and micro batches of their means. Only a row less
than 91 % as full as the average has fewer (110 % of its 15 %). With several sources, the average is over the mixture.

Evaluation (`mask_windows`): the key is a hash of the window's tokens, so a protein gets the same mask in every packing
and for every model. Two protocols use the same positions: "published" (80/10/10, comparable with the published figures)
and "mask_only" (every chosen token becomes <mask>).

Random numbers are raw draws of the counter-based generator Philox, whose stream NumPy guarantees, unlike the methods of
its Generator: masks are the same with every NumPy version.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from amplify_ds.vocab import BOS, EOS, MASK, PAD, TOKENS

IGNORED = -100
"""The label of an unused slot, which torch's cross-entropy ignores by default."""

PROTOCOLS = {"published": (0.8, 0.1), "mask_only": (1.0, 0.0)}  # shares of <mask> and of random tokens
_MAX_EXCESS = 1.1  # a row may mask up to this times `fraction` of its tokens to reach K


def masked_per_row(manifests: Sequence[Mapping], weights: Sequence[int], fraction: float) -> int:
    """Return K, the number of masked positions of every row: `fraction` of the mean number of eligible tokens per row.

    manifests, weights: one of each per source. The mean is weighted as the sources are mixed.
    """
    total = 0.0
    for manifest, weight in zip(manifests, weights, strict=True):
        tokens = manifest["token_counts"]
        eligible = sum(tokens) - tokens[PAD] - tokens[BOS] - tokens[EOS]
        total += weight * (fraction * eligible / manifest["counts"]["rows"])
    return round(total / sum(weights))


def mask_row(
    tokens: np.ndarray,
    key: tuple[int, ...],
    slots: int,
    fraction: float,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask one row for training.

    tokens: uint8 [row_tokens]. key: integers, see above. slots: K from `masked_per_row` with the same `fraction`.
    Returns input_ids uint8 [row_tokens], positions int64 [K] in the row, ascending, and labels int64 [K]. Unused slots
    come last, with position 0 and label -100.
    """
    eligible = _eligible(tokens)
    count = min(slots, round(min(_MAX_EXCESS * fraction, 1.0) * np.count_nonzero(eligible)))
    draws = _generator(",".join(map(str, key)).encode())
    input_ids, chosen = _mask(tokens, eligible, count, draws, mask_share, random_share)
    positions = np.zeros(slots, dtype=np.int64)
    labels = np.full(slots, IGNORED, dtype=np.int64)
    positions[:count], labels[:count] = chosen, tokens[chosen]
    return input_ids, positions, labels


def mask_windows(
    tokens: np.ndarray, lengths: np.ndarray, fraction: float = 0.15, protocol: str = "published"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask every window of one row for evaluation.

    tokens: uint8 [row_tokens]. lengths: integers [windows], the windows' lengths from the start of the row.
    protocol: "published" or "mask_only". In each window `fraction` of the eligible tokens is chosen, at least one.
    Returns input_ids uint8 [row_tokens], positions int64 [n] in the row, ascending, and labels int64 [n].
    """
    input_ids = np.array(tokens)
    parts = [np.zeros(0, dtype=np.int64)]
    stop = 0
    for length in map(int, lengths):
        start, stop = stop, stop + length
        window = tokens[start:stop]
        eligible = _eligible(window)
        if total := np.count_nonzero(eligible):
            count = max(1, round(fraction * total))
            draws = _generator(window.tobytes())
            input_ids[start:stop], chosen = _mask(window, eligible, count, draws, *PROTOCOLS[protocol])
            parts.append(start + chosen)
    positions = np.concatenate(parts)
    return input_ids, positions, tokens[positions].astype(np.int64)


def _mask(
    tokens: np.ndarray,
    eligible: np.ndarray,
    count: int,
    draws: np.random.Philox,
    mask_share: float,
    random_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` of the `eligible` positions and replace the tokens there; return (input_ids, chosen)."""
    input_ids = np.array(tokens)
    chosen = _choose(eligible, count, draws)
    draw = draws.random_raw(count)  # the upper 32 bits choose the kind of replacement, the lower ones a random token
    kind = draw >> np.uint64(32)
    input_ids[chosen] = MASK
    unmasked = np.flatnonzero(kind >= _threshold(mask_share))
    others = chosen[unmasked]
    random_tokens = (draw[unmasked] & np.uint64(2**32 - 1)) * np.uint64(len(TOKENS)) >> np.uint64(32)
    is_random = kind[unmasked] < _threshold(mask_share + random_share)
    input_ids[others] = np.where(is_random, random_tokens, tokens[others])
    return input_ids, chosen


def _threshold(share: float) -> np.uint64:
    """Return the limit below which a uniform integer of 32 bits falls with probability `share`."""
    return np.uint64(math.ceil(share * 2**32))


def _choose(eligible: np.ndarray, count: int, draws: np.random.Philox) -> np.ndarray:
    """Return `count` of the positions where `eligible` (bool [n]) is true, int64, ascending."""
    raw = draws.random_raw(-(-len(eligible) // 8)).astype("<u8", copy=False)
    ticket = raw.view(np.uint8)[: len(eligible)] | (~eligible).astype(np.uint16) << 8  # 256 or more: not eligible
    last = 256 * count // len(eligible)  # a guess of the largest chosen ticket, corrected by the loops below
    while last and np.count_nonzero(ticket < last) >= count:
        last -= 1
    while np.count_nonzero(ticket <= last) < count:
        last += 1
    chosen = ticket < last
    tied = np.flatnonzero(ticket == last)
    missing = count - np.count_nonzero(chosen)
    chosen[tied[np.argsort(draws.random_raw(len(tied)), kind="stable")[:missing]]] = True
    return np.flatnonzero(chosen)


def _eligible(tokens: np.ndarray) -> np.ndarray:
    return (tokens != PAD) & (tokens != BOS) & (tokens != EOS)


def _generator(key: bytes) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little"))
