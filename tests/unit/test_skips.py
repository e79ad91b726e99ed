"""Skipped rows: their replacements, the rest of the stream, and the files that list them."""

import json

import numpy as np
import pytest

from amplify_ds.data.mixture import Mixture
from amplify_ds.data.order import permute
from amplify_ds.data.skips import Skips, add_skips, read_skip_rows
from amplify_ds.errors import AmplifyError
from tests.support.fake_source import fake

MIXTURE = Mixture([fake("a", 3, rows=20), fake("b", 2, rows=7)])
BATCH = 10  # rows
POSITIONS = np.arange(1000)
PLAIN = MIXTURE.at(POSITIONS, seed=4)


def stream(*skips):
    return Skips(MIXTURE, skips).replace(PLAIN, POSITIONS // BATCH, 4)


def skip(source, row, first):
    return {"source": source, "row": row, "from": first}


def test_without_skips_the_stream_does_not_change():
    assert stream() is PLAIN


def test_a_row_is_replaced_from_its_batch_on_and_nothing_else_changes():
    skipped = stream(skip("a", 5, 30), skip("b", 0, 0), skip("b", 1, 0), skip("b", 6, 50))
    batches = POSITIONS // BATCH
    out = (PLAIN.sources == 0) & (PLAIN.rows == 5) & (batches >= 30)
    out |= (PLAIN.sources == 1) & ((PLAIN.rows <= 1) | (PLAIN.rows == 6) & (batches >= 50))
    assert np.array_equal(skipped.rows != PLAIN.rows, out) and 50 < out.sum() < 200
    assert (skipped.sources, skipped.indices, skipped.epochs) == (PLAIN.sources, PLAIN.indices, PLAIN.epochs)
    for source, row, first in ((0, 5, 30), (1, 0, 0), (1, 1, 0), (1, 6, 50)):
        assert not ((skipped.sources == source) & (skipped.rows == row) & (batches >= first)).any()
    before = (PLAIN.sources == 0) & (PLAIN.rows == 5) & (batches < 30)
    assert before.any() and (skipped.rows[before] == 5).all()
    assert set(skipped.rows[out & (PLAIN.sources == 1)]) >= {2, 3, 4, 5}, "replacements are spread over the source"
    assert (skipped.rows[PLAIN.sources == 1] < 7).all()


def test_a_replacement_comes_from_another_order_of_its_source():
    skipped = stream(skip("b", 3, 0), skip("b", 4, 0))
    several = 0
    for i in np.flatnonzero(skipped.rows != PLAIN.rows):
        epoch, index = divmod(int(PLAIN.indices[i]), 7)
        drawn = [int(permute(np.array([index]), 7, (4, epoch, 1, 2**33 + k))[0]) for k in range(50)]
        assert skipped.rows[i] == next(row for row in drawn if row not in (3, 4))
        several += drawn[0] in (3, 4)
    assert several > 3


def test_parts_of_a_batch_agree_with_the_whole():
    skips = Skips(MIXTURE, [skip("a", 5, 3), skip("b", 0, 0)])
    whole = skips.replace(PLAIN, POSITIONS // BATCH, 4).rows
    for positions in np.split(POSITIONS, 250):
        assert np.array_equal(skips.replace(MIXTURE.at(positions, 4), positions // BATCH, 4).rows, whole[positions])


def test_the_earliest_of_two_counts_and_new_ones_are_added_once():
    assert np.array_equal(stream(skip("a", 5, 30), skip("a", 5, 3)).rows, stream(skip("a", 5, 3)).rows)
    kept = add_skips([skip("a", 5, 3)], [{"source": "a", "row": 5}, {"source": "b", "row": 5}] * 2, 40)
    assert kept == [skip("a", 5, 3), skip("b", 5, 40)] and json.loads(json.dumps(kept)) == kept


def test_a_list_is_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"source": "a", "row": 19, "step": 7, "loss": 9.5}\n\n{"row": 0, "source": "b"}\n')
    assert read_skip_rows(file, MIXTURE) == [{"source": "a", "row": 19}, {"source": "b", "row": 0}]


@pytest.mark.parametrize(
    "line, text",
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: expected an object such as"),
        ('{"source": "a"}', "line 2: expected an object such as"),
        ('{"source": "a", "row": "5"}', "line 2: expected an object such as"),
        ('{"source": "a", "row": true}', "line 2: expected an object such as"),
        ('{"source": "c", "row": 5}', "line 2: there is no source c; this run has a, b"),
        ('{"source": "a", "row": 20}', "line 2: a has no row 20; it has rows 0 to 19"),
        ('{"source": "a", "row": -1}', "line 2: a has no row -1"),
    ],
)
def test_bad_lines_are_errors(tmp_path, line, text):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"source": "a", "row": 1}\n' + line + "\n")
    with pytest.raises(AmplifyError) as error:
        read_skip_rows(file, MIXTURE)
    assert f"{file}, {text}" in str(error.value), str(error.value)


def test_a_list_that_is_absent_and_a_source_without_rows(tmp_path):
    with pytest.raises(AmplifyError, match="the list of rows to skip cannot be read"):
        read_skip_rows(tmp_path / "absent", MIXTURE)
    with pytest.raises(AmplifyError, match="all 7 rows of b are skipped"):
        Skips(MIXTURE, [skip("b", row, 0) for row in range(7)])
    Skips(MIXTURE, [skip("b", row, 0) for row in range(6)])
