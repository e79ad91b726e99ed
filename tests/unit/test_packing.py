"""Windows and rows against their definitions, and the packing efficiency on lengths like those of real proteins."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds.data import packing
from amplify_ds.data.packing import pack, tile


@given(st.lists(st.integers(1, 3000)), st.integers(3, 600))
def test_windows_tile_every_sequence_in_nearly_equal_parts(lengths, max_length):
    sequence, start, stop = tile(np.array(lengths, dtype=np.int64), max_length)
    for index, length in enumerate(lengths):
        starts, stops = start[sequence == index].tolist(), stop[sequence == index].tolist()
        assert [0, *stops[:-1]] == starts and stops[-1] == length
        sizes = [b - a for a, b in zip(starts, stops)]
        assert len(sizes) == -(-length // max_length)
        assert max(sizes) <= max_length and max(sizes) - min(sizes) <= 1
    assert np.array_equal(sequence, np.sort(sequence))


def pack_by_definition(lengths, row_tokens, lookahead):
    """The docstring of `packing` as code, with a search through all waiting windows."""
    arriving, waiting, rows = list(range(len(lengths))), [], []
    while arriving or waiting:
        row, room = [], row_tokens
        while arriving and room - lengths[arriving[0]] >= packing.KEPT_FREE * max(lengths):
            row.append(arriving.pop(0))
            room -= lengths[row[-1]]
        while True:
            while arriving and len(waiting) < lookahead:
                waiting.append(arriving.pop(0))
            fitting = [window for window in waiting if lengths[window] <= room]
            if not fitting:
                break
            all_fit = len(fitting) == len(waiting)
            chosen = waiting[0] if all_fit else max(fitting, key=lambda window: (lengths[window], window))
            waiting.remove(chosen)
            row.append(chosen)
            room -= lengths[chosen]
        rows.append(row)
    return rows


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 120), st.integers(1, 8))
def test_rows_are_those_of_the_definition(lengths, row_tokens, lookahead):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LOOKAHEAD", lookahead)
        rows = list(pack(lengths, row_tokens))
    assert rows == pack_by_definition(lengths, row_tokens, lookahead)


@given(st.lists(st.integers(1, 512), max_size=300), st.sampled_from([512, 1024, 8192]))
def test_every_window_is_in_one_row_and_no_row_overflows(lengths, row_tokens):
    rows = list(pack(lengths, row_tokens))
    assert sorted(window for row in rows for window in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[window] for window in row) <= row_tokens for row in rows)


@pytest.mark.parametrize("row_tokens", [2048, 8192])
def test_rows_are_over_99_percent_full(row_tokens):
    """3,000 sequences of a median of 345 and a mean of about 450 residues, as in UniProt, cut at 512."""
    draw = random.Random(1)
    proteins = np.array([min(8000, max(20, round(draw.lognormvariate(5.85, 0.75)))) + 2 for _ in range(3000)])
    _, start, stop = tile(proteins, 512)
    windows = (stop - start).tolist()
    draw.shuffle(windows)
    rows = list(pack(windows, row_tokens))
    assert sum(windows) / (len(rows) * row_tokens) > 0.99
    assert sum(windows) > 0.995 * (len(rows) - 1) * row_tokens  # all but the last row


def test_no_window_waits_for_long():
    """A row takes about 5 of 1,024 waiting windows, so these are used up after about 200 rows."""
    draw = random.Random(2)
    lengths = [draw.randint(20, 512) for _ in range(20_000)]
    order = [window for row in pack(lengths, 8192) for window in row]
    positions = np.empty(len(order), dtype=np.int64)
    positions[order] = np.arange(len(order))
    assert np.abs(positions - np.arange(len(order))).max() < 8 * packing.LOOKAHEAD
