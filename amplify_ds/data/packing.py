"""Cut sequences into windows, and pack windows into full rows.

Windows: `tile` cuts a sequence of n tokens (including <bos> and <eos>) into ceil(n / max_length) windows of nearly
equal length, so nothing is lost and no tiny window is left over. The cut is made after <bos> and <eos> were added, as
in the official recipe, so only the first window has <bos> and only the last has <eos>. `crop` instead cuts one window
of max_length tokens from every longer sequence, at a uniformly random position (the official recipe).

Rows: windows arrive in random order. A row takes them as they come until it has room for only `KEPT_FREE` of the
longest. It chooses the rest among the next `LOOKAHEAD` windows, which wait: the one that has waited longest, as long as
there is room for any of them, so that the content of a row stays random; after that the longest that fits (best fit),
until none fits. With a thousand lengths to choose from, the last one usually fits exactly: on real proteins, rows are
over 99.9 % full, except for the last row.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

LOOKAHEAD = 1024
KEPT_FREE = 3


def tile(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut sequences of `lengths` tokens (integers [s], >= 1) into windows of at most `max_length` tokens.

    Returns (sequence, start, stop), int64 [windows] each, in order: window w is sequence[w][start[w]:stop[w]].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = -(-lengths // max_length)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    window = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, … in each sequence
    length, count = lengths[sequence], counts[sequence]
    return sequence, length * window // count, length * (window + 1) // count


def crop(lengths: np.ndarray, max_length: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut one window of at most `max_length` tokens from each sequence. draws: uint64 [s], uniformly distributed.

    Returns (sequence, start, stop) as `tile` does.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    window = np.minimum(lengths, max_length)
    starts = (lengths - window + 1).astype(np.uint64)  # number of possible starts
    start = ((draws >> np.uint64(32)) * starts >> np.uint64(32)).astype(np.int64)
    return np.arange(len(lengths)), start, start + window


def pack(lengths: Sequence[int], row_tokens: int) -> Iterator[list[int]]:
    """Pack windows of `lengths` tokens (each 1 to `row_tokens`), in random order, into rows of `row_tokens` tokens.

    Yields each row as a list of the indices of its windows. Every window is in exactly one row.
    """
    count = len(lengths)
    ends = [0, *accumulate(lengths)]
    filled_in_order = row_tokens - KEPT_FREE * max(lengths, default=0)  # tokens
    waiting: list[int] = []  # waiting windows, sorted by length: length * count + index
    placed = bytearray(count)
    arrived = oldest = 0
    while arrived < count or waiting:
        first = arrived
        arrived = max(first, bisect_right(ends, ends[first] + filled_in_order, first) - 1)
        placed[first:arrived] = bytes([True]) * (arrived - first)
        row, room = list(range(first, arrived)), row_tokens - ends[arrived] + ends[first]
        while True:
            while arrived < count and len(waiting) < LOOKAHEAD:
                insort(waiting, lengths[arrived] * count + arrived)
                arrived += 1
            if not waiting:
                break
            if waiting[-1] // count <= room:
                while placed[oldest]:
                    oldest += 1
                chosen = bisect_left(waiting, lengths[oldest] * count + oldest)
            else:
                chosen = bisect_left(waiting, (room + 1) * count) - 1  # the longest that fits
                if chosen < 0:
                    break
            length, window = divmod(waiting.pop(chosen), count)
            placed[window] = True
            row.append(window)
            room -= length
        yield row
