"""Guards in real runs, compared with a plain loop that skips the same batches; jumps of the loss against numpy."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from amplify_ds.data.order import rows_at
from amplify_ds.data.shards import Shards
from amplify_ds.plot import read_scalars
from amplify_ds.training import checkpoint, guards
from tests.support.plain_training import plain_training
from tests.support.training import SMALL, losses, train, train_with_faults

ROWS = SMALL["training.global_batch_tokens"] // 1024


@given(st.lists(st.floats(0, 10), max_size=400), st.lists(st.floats(0, 20), max_size=20), st.floats(0.5, 8))
def test_a_jump_is_a_number_of_standard_deviations(recent, new, deviations):
    spikes, kept = guards.find_spikes(recent[-guards.WINDOW :], new, deviations)
    every = recent[-guards.WINDOW :] + new
    assert kept == every[-guards.WINDOW :] or not new
    for number, loss in enumerate(new):
        before = np.array((every[: len(every) - len(new) + number])[-guards.WINDOW :])
        if len(before) < guards.FEWEST:
            assert number not in spikes
        else:
            limit = before.mean() + deviations * before.std(ddof=1)
            assert (number in spikes) == (loss > limit) or loss == pytest.approx(limit)
    assert guards.find_spikes(recent, new, 0)[0] == []


def rows_of(shards, batch: int) -> list[int]:
    positions = np.arange(batch * ROWS, (batch + 1) * ROWS)
    return rows_at(positions, Shards(shards["train"]).num_rows, 0)[1].tolist()


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("stage, precision", [(0, "fp32"), (1, "bf16")])
def test_a_gradient_that_is_not_finite_changes_nothing(shards, tmp_path, stage, precision):
    """On one of two ranks, in batches 2, 5 and 6; interrupted in between."""
    output = tmp_path / "run"
    settings = {
        "training__micro_batch_rows": 2,
        "training__precision": precision,
        "checkpoint__every": 4,
        "checkpoint__keep_last": 9,
    }
    first = train_with_faults({"nan": [[2, 1], [5, 0], [6, 1]]}, 2, output, shards, stage, **settings)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("was not finite") == 3
    expected, _, weights = plain_training(shards, skipped=(2, 5, 6))
    assert list(losses(output).values()) == pytest.approx(expected, abs=1e-5 if precision == "fp32" else 1e-2)
    assert read_scalars(output)["train/skipped_steps"][1][-1] == 3
    records = lines(output / guards.SKIPPED)
    assert [record["row"] for record in records] == [row for batch in (2, 5, 6) for row in rows_of(shards, batch)]
    if precision == "fp32":
        state = output / "checkpoints/step-00000010/model.safetensors"
        for name, weight in load_file(state).items():
            np.testing.assert_allclose(weight, weights[name], atol=1e-4, rtol=1e-3, err_msg=name)

    for step in (8, 10):
        for file in (path := output / f"checkpoints/step-{step:08d}").iterdir():
            file.unlink()
        path.rmdir()
    before = losses(output)
    (output / "result.json").unlink()
    again = train_with_faults({"nan": [[5, 0], [6, 1]], "first_batch": 5}, 2, output, shards, stage, **settings)
    assert again.returncode == 0 and "4 of 10 steps are done" in again.stderr, again.stderr
    assert losses(output) == before


@pytest.mark.parametrize("every", [2, 0])
def test_too_many_in_a_row_end_the_run(shards, tmp_path, every):
    faults = {"nan": [[batch, 0] for batch in (2, 4, 5, 6)]}
    result = train_with_faults(
        faults,
        2,
        tmp_path / "run",
        shards,
        guards__skipped_in_a_row=3,
        training__micro_batch_rows=2,
        checkpoint__every=every,
    )
    assert result.returncode != 0 and "the gradient of 3 batches in a row was not finite" in result.stderr
    assert "step 4" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in checkpoint.listing(tmp_path / "run")] == (["step-00000002"] if every else [])
    named = f"newest checkpoint is {tmp_path}/run/checkpoints/step-00000002" if every else "No checkpoint was saved"
    assert named in result.stderr


def test_a_jump_of_the_loss_names_the_row(shards, tmp_path):
    output = tmp_path / "run"
    result = train_with_faults({"jump": [[6, 1]]}, 2, output, shards, training__micro_batch_rows=2, log__every=5)
    assert result.returncode == 0 and "the loss of step 7 jumped" in result.stderr, result.stderr
    records = lines(output / guards.SPIKES)
    assert {x["row"] for x in records} == set(rows_of(shards, 6)) and {x["step"] for x in records} == {7}
    assert records[0]["row"] == rows_of(shards, 6)[2], "the first row of rank 1"
    assert records[0]["loss"] > 50 > records[1]["loss"] and "jumped" not in train(1, tmp_path / "b", shards).stderr


def test_rows_are_skipped_from_now_on(shards, tmp_path):
    """The first five steps are unchanged, later ones have other rows in place of some; a resumed run needs no list."""
    output, file = tmp_path / "run", tmp_path / "rows.jsonl"
    assert train(2, output, shards, training__steps=5).returncode == 0
    rows = [row for batch in (6, 8) for row in rows_of(shards, batch)[1:3]]
    file.write_text("".join(json.dumps({"source": "train", "row": row, "loss": 9.0}) + "\n" for row in rows))
    result = train(2, output, shards, training__steps=7, skip_rows=file)
    assert result.returncode == 0, result.stderr
    result = train(1, output, shards)
    assert result.returncode == 0, result.stderr
    expected, _, _ = plain_training(shards, skips=[{"source": "train", "row": row, "from": 5} for row in rows])
    assert list(losses(output).values()) == pytest.approx(expected, abs=1e-5)
    assert expected[6] != pytest.approx(plain_training(shards)[0][6], abs=1e-5)
    file.write_text('{"source": "train", "row": 123456789}\n')
    wrong = train(1, output, shards, training__steps=11, skip_rows=file)
    assert wrong.returncode != 0 and "rows.jsonl, line 1: train has no row 123456789" in wrong.stderr
