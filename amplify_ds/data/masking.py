"""The masks of masked language modelling, as pure functions of the tokens and a key.

Eligible is every token but <pad>, <bos> and <eos>. A `fraction` of the eligible tokens is chosen, uniformly without
replacement: every place gets a random ticket of one byte, the n smallest of the eligible ones are chosen. Bytes are
quick to draw and to count, and many are equal: the places whose ticket is the largest that is chosen get a second
ticket of 64 bits, which decides among them. Of the chosen, 80 % become <mask>, 10 % a token drawn from all 27, 10 %
stay as they are (BERT's and AMPLIFY's recipe); the label is always the original token.

Training (`mask_row`): the key is (seed, epoch, row), for every source but the first (seed, epoch, row, source). So a
row has the same mask wherever and whenever it is read in an epoch, and another one in the next. Every row carries the
same number K of masked positions, 15 % of what an average row holds. So shapes are static, and the mean over the masked
positions of the whole batch is the mean over ranks and micro-batches of their means. Only a row less than 91 % as full
as the average carries fewer (110 % of its 15 %). With several sources the average row is that of the mixture.

Evaluation (`mask_windows`): the key is a hash of the window's own tokens, so a protein is masked alike in every packing
and for every model. Two protocols at the same positions: "published" (80/10/10, comparable with the published figures)
and "mask_only" (every chosen token becomes <mask>).

Random numbers are raw draws of the counter-based generator Philox, which numpy never changes, unlike the methods of its
Generator: masks are the same for every numpy version.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from amplify_ds.vocab import BOS, EOS, MASK, PAD, TOKENS

IGNORED = -100
"""The label of a slot that carries no masked position: what torch's cross-entropy skips by default."""

PROTOCOLS = {"published": (0.8, 0.1), "mask_only": (1.0, 0.0)}  # share that becomes <mask>, share of random tokens
_OVERFULL = 1.1  # a row may give up to this times `fraction` of its tokens to reach K


def masked_per_row(manifests: Sequence[Mapping], weights: Sequence[int], fraction: float) -> int:
    """Return K, the number of masked positions of every row: `fraction` of the mean number of eligible tokens per row.

    The mean is that of the rows read: of one manifest for each source, by weight.
    """
    of_sources = 0.0
    for manifest, weight in zip(manifests, weights, strict=True):
        tokens = manifest["token_counts"]
        eligible = sum(tokens) - tokens[PAD] - tokens[BOS] - tokens[EOS]
        of_sources += weight * (fraction * eligible / manifest["counts"]["rows"])
    return round(of_sources / sum(weights))


def mask_row(
    tokens: np.ndarray,
    key: tuple[int, ...],
    slots: int,
    fraction: float,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask one row for training.

    tokens: uint8 [row_tokens]. key: whole numbers, see above. slots: K, of `masked_per_row` with the same `fraction`.
    Returns input_ids uint8 [row_tokens], positions int64 [K] in the row, ascending, and labels int64 [K]. Slots that
    are not used come last, with position 0 and label -100.
    """
    eligible = _eligible(tokens)
    count = min(slots, round(min(_OVERFULL * fraction, 1.0) * np.count_nonzero(eligible)))
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
    found = [np.zeros(0, dtype=np.int64)]
    stop = 0
    for length in map(int, lengths):
        start, stop = stop, stop + length
        window = tokens[start:stop]
        eligible = _eligible(window)
        if held := np.count_nonzero(eligible):
            count = max(1, round(fraction * held))
            draws = _generator(window.tobytes())
            input_ids[start:stop], chosen = _mask(window, eligible, count, draws, *PROTOCOLS[protocol])
            found.append(start + chosen)
    positions = np.concatenate(found)
    return input_ids, positions, tokens[positions].astype(np.int64)


def _mask(
    tokens: np.ndarray,
    eligible: np.ndarray,
    count: int,
    draws: np.random.Philox,
    mask_share: float,
    random_share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` of the places that are `eligible`, replace the tokens there; return (input_ids, chosen)."""
    input_ids = np.array(tokens)
    chosen = _choose(eligible, count, draws)
    draw = draws.random_raw(count)  # the upper 32 bits say what becomes of the token, the lower ones draw another
    fate = draw >> np.uint64(32)
    input_ids[chosen] = MASK
    left = np.flatnonzero(fate >= _of_2_32(mask_share))
    others = chosen[left]
    another = (draw[left] & np.uint64(2**32 - 1)) * np.uint64(len(TOKENS)) >> np.uint64(32)
    input_ids[others] = np.where(fate[left] < _of_2_32(mask_share + random_share), another, tokens[others])
    return input_ids, chosen


def _of_2_32(share: float) -> np.uint64:
    return np.uint64(math.ceil(share * 2**32))


def _choose(eligible: np.ndarray, count: int, draws: np.random.Philox) -> np.ndarray:
    """Return `count` of the places where `eligible` (bool [n]) holds, int64, ascending."""
    words = draws.random_raw(-(-len(eligible) // 8)).astype("<u8", copy=False)
    ticket = words.view(np.uint8)[: len(eligible)] | (~eligible).astype(np.uint16) << 8  # 256 and more: none
    last = 256 * count // len(eligible)  # near the largest ticket that is chosen; from here step by step
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
