"""Cut sequences longer than the model's limit into overlapping windows, and pack windows into rows without padding.

A sequence of up to L tokens (including <bos> and <eos>) is one window, L being the limit. A longer sequence is covered
by windows of exactly L tokens whose starts are evenly spaced, at most L // 2 apart, so neighbours overlap by half or
more. As in training, only the first window has <bos>, only the last has <eos>, and positions begin at 0 in each. The
result of a token is taken from the window in which the token is farthest from an edge, the earlier of two equal ones.

Rows: windows are sorted by length, longest first, and concatenated until the next one would exceed the row's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SHORTEST_LIMIT = 8  # tokens; in shorter windows every token is close to an edge


def windows(tokens: int, max_length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (starts [w], borders [w + 1], length): window i reads [starts[i], starts[i] + length) of a sequence of
    `tokens` tokens, and the result of the tokens [borders[i], borders[i + 1]) is taken from it.
    """
    if tokens <= max_length:
        return np.array([0]), np.array([0, tokens]), tokens
    spare = tokens - max_length
    count = -(-spare // (max_length // 2)) + 1
    starts = np.arange(count) * spare // (count - 1)
    # Token p belongs to window i rather than i + 1 up to the midpoint between the centres of the two.
    inner = (starts[:-1] + starts[1:] + max_length - 1) // 2 + 1
    return starts, np.array([0, *inner, tokens]), max_length


def rows(lengths: Sequence[int], row_tokens: int) -> Iterator[list[int]]:
    """Yield lists of indices into `lengths`, of at most `row_tokens` tokens in all or of one longer window."""
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
