"""The masks of masked language modelling, as pure functions of the tokens and a key.

Eligible is every token but <pad>, <bos> and <eos>. A `fraction` of the eligible tokens is chosen, uniformly without
replacement: each gets a random number of 64 bits, the n smallest are chosen. Of the chosen, 80 % become <mask>, 10 % a
token drawn from all 27, 10 % stay as they are (BERT's and AMPLIFY's recipe); the label is always the original token.

Training (`mask_row`): the key is (seed, epoch, row), so a row has the same mask wherever and whenever it is read in an
epoch, and another one in the next. Every row carries the same number K of masked positions, 15 % of what an average row
holds. So shapes are static, and the mean over the masked positions of the whole batch is the mean over ranks and
micro-batches of their means. Only a row less than 91 % as full as the average carries fewer (110 % of its 15 %).

Evaluation (`mask_windows`): the key is a hash of the window's own tokens, so a protein is masked alike in every packing
and for every model. Two protocols at the same positions: "published" (80/10/10, comparable with the published figures)
and "mask_only" (every chosen token becomes <mask>).

Random numbers are raw draws of the counter-based generator Philox, which numpy never changes, unlike the methods of its
Generator: masks are the same for every numpy version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from amplify_ds.vocab import BOS, EOS, MASK, PAD, TOKENS

IGNORED = -100
"""The label of a slot that carries no masked position: what torch's cross-entropy skips by default."""

PROTOCOLS = {"published": (0.8, 0.1), "mask_only": (1.0, 0.0)}  # share that becomes <mask>, share of random tokens
_OVERFULL = 1.1  # a row may give up to this times `fraction` of its tokens to reach K


def masked_per_row(manifest: Mapping, fraction: float) -> int:
    """Return K, the number of masked positions of every row: `fraction` of the mean number of eligible tokens a row."""
    tokens = manifest["token_counts"]
    eligible = sum(tokens) - tokens[PAD] - tokens[BOS] - tokens[EOS]
    return round(fraction * eligible / manifest["counts"]["rows"])


def mask_row(
    tokens: np.ndarray,
    key: tuple[int, ...],
    slots: int,
    fraction: float,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask one row for training.

    tokens: uint8 [row_tokens]. key: (seed, epoch, row). slots: K, of `masked_per_row` with the same `fraction`.
    Returns input_ids uint8 [row_tokens], positions int64 [K] in the row, ascending, and labels int64 [K]. Slots that
    are not used come last, with position 0 and label -100.
    """
    eligible = _eligible(tokens)
    count = min(slots, round(min(_OVERFULL * fraction, 1.0) * len(eligible)))
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
    positions = [np.zeros(0, dtype=np.int64)]
    stop = 0
    for length in map(int, lengths):
        start, stop = stop, stop + length
        window = tokens[start:stop]
        eligible = _eligible(window)
        if len(eligible):
            count = max(1, round(fraction * len(eligible)))
            draws = _generator(window.tobytes())
            input_ids[start:stop], chosen = _mask(window, eligible, count, draws, *PROTOCOLS[protocol])
            positions.append(start + chosen)
    positions = np.concatenate(positions)
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
    if not count:
        return input_ids, np.zeros(0, dtype=np.int64)
    ticket = draws.random_raw(len(eligible))
    last = np.partition(ticket, count - 1)[count - 1]
    chosen = eligible[np.flatnonzero(ticket <= last)[:count]]  # cut: two tickets could be equal

    draw = draws.random_raw(count)  # the upper 32 bits say what becomes of the token, the lower ones draw another
    fate = (draw >> np.uint64(32)).astype(np.float64) / 2**32
    replacement = ((draw & np.uint64(2**32 - 1)) * np.uint64(len(TOKENS))) >> np.uint64(32)
    replacement[fate < mask_share] = MASK
    replaced = fate < mask_share + random_share
    input_ids[chosen[replaced]] = replacement[replaced]
    return input_ids, chosen


def _eligible(tokens: np.ndarray) -> np.ndarray:
    return np.flatnonzero((tokens != PAD) & (tokens != BOS) & (tokens != EOS))


def _generator(key: bytes) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little"))
