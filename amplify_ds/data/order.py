"""The endless order in which the rows of a source are read, as a pure function: index in the order -> (epoch, row).

Index p belongs to epoch p // size. Every epoch reads each row once, in its own order: row = permute(p % size). The
permutation is computed, never stored, so memory and start-up time do not grow with the number of rows, and the state of
the data stream is one integer.

`permute` is a Feistel network. The index is a number of b bits, 2^(b-1) < size <= 2^b, split into a high and a low
half. Each half in turn is XORed with a hash of the other half and the key. Every such round is invertible, so all
rounds together are a permutation of [0, 2^b). Results of `size` or more are permuted again until they are smaller
(cycle-walking), which gives a permutation of [0, size) after fewer than two passes on average.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 8  # four for each half; three make a Feistel network pseudo-random, the rest is for very small sizes
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def rows_at(indices: np.ndarray, size: int, seed: int, source: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (epochs, rows), int64 [n] each, at `indices` (integers [n], >= 0) of the order of `size` rows.

    Every `source` (0, 1, …) has a different order.
    """
    indices = np.asarray(indices, dtype=np.int64)
    epochs = indices // size
    return epochs, permute(indices % size, size, (seed, epochs, source) if source else (seed, epochs))


def permute(index: np.ndarray, size: int, key: tuple[int | np.ndarray, ...]) -> np.ndarray:
    """Return the image of each `index` under the permutation of range(`size`) that `key` selects, int64 [n].

    index: integers [n] in [0, size). size: 1 to 2^40. key: 64-bit integers, each a scalar or an array [n].
    """
    if size < 1:
        raise ValueError(f"there is no permutation of {size} rows")
    if size == 1:
        return np.zeros(np.shape(index), dtype=np.int64)
    bits = (size - 1).bit_length()
    index = np.array(index, dtype=np.uint64)
    keys = np.broadcast_to(_hash_key(key), index.shape)
    outside = np.arange(index.size)
    while outside.size:
        index[outside] = _feistel(index[outside], bits, keys[outside])
        outside = outside[index[outside] >= size]
    return index.astype(np.int64)


def _feistel(value: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
    low, high = value & low_mask, value >> low_bits
    for _ in range(ROUNDS // 2):
        keys = keys + _GOLDEN
        high = high ^ (mix(low ^ keys) & high_mask)
        keys = keys + _GOLDEN
        low = low ^ (mix(high ^ keys) & low_mask)
    return high << low_bits | low


def _hash_key(key: tuple[int | np.ndarray, ...]) -> np.ndarray:
    """Hash the parts of a key into one uint64 per index, [n], or one for all, [1]."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = mix(state + _GOLDEN + np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return state


def mix(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of splitmix64: flipping one input bit flips about half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
