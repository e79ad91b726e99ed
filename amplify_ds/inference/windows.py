"""Sequences longer than the model's limit -> overlapping windows; windows -> rows without padding.

A sequence of T tokens (<bos> and <eos> counted) up to the limit L is one window. A longer one is covered by windows of
exactly L tokens whose starts are evenly spaced, at most L // 2 apart, so that neighbours overlap by half or more. As in
training, only the first has <bos>, only the last has <eos>, and positions begin at 0 in each. Every token is taken from
one window: that in which it is farthest from an edge, the earlier one of two.

Rows: windows are ordered by length, the longest first, and laid end to end until the next would exceed the row's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SHORTEST_LIMIT = 8  # tokens: below this, windows hardly have an inside


def windows(tokens: int, max_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (starts [w], borders [w + 1], length): window i reads [starts[i], starts[i] + length) of a sequence of
    `tokens` tokens, and the result of the tokens [borders[i], borders[i + 1]) is taken from it.
    """
    if tokens <= max_length:
        return np.array([0]), np.array([0, tokens]), tokens
    spare = tokens - max_length
    count = -(-spare // (max_length // 2)) + 1
    starts = np.arange(count) * spare // (count - 1)
    # Token p is at least as far inside window i as inside i + 1 while it is not past the middle of their centres.
    inner = (starts[:-1] + starts[1:] + max_length - 1) // 2 + 1
    return starts, np.array([0, *inner, tokens]), max_length


def rows(lengths: Sequence[int], row_tokens: int) -> Iterator[list[int]]:
    """Yield lists of indices into `lengths` whose sum is at most `row_tokens`; one that is longer stands alone."""
    row: list[int] = []
    used = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if row and used + lengths[index] > row_tokens:
            yield row
            row, used = [], 0
        row.append(index)
        used += lengths[index]
    if row:
        yield row
