"""The batch that replay prints is the one that two ranks read: its loss, recomputed, equals the logged one."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.data.shards import Shards
from amplify_ds.files import content_digest
from amplify_ds.training import checkpoint
from amplify_ds.training.past_batches import batch_index
from amplify_ds.vocab import TOKENS, decode
from tests.support.commands import interpreter, python
from tests.support.training import losses, train

SETTINGS = {"checkpoint__every": 3, "checkpoint__keep_last": 9, "training__seed": 11}


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """Ten steps on two ranks with two loader workers each, and two sources, one read three times as often."""
    output = tmp_path_factory.mktemp("replay") / "run"
    first = {**shards, "train": f"big={shards['train']}:3"}
    result = train(2, output, first, data__train=f"small={shards['validation']}", data__workers=2, **SETTINGS)
    assert result.returncode == 0, result.stderr
    return output


def replay(run, *arguments):
    result = python("-m", "amplify_ds.replay", run, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def replayed(run, step, *arguments):
    file = run.parent / "batch.json"
    text = replay(run, "--step", step, "--json", file, *arguments)
    return text, json.loads(file.read_text())


def loss_by_reference(run, step, batch):
    """Return the mean loss of the targets with the weights before the step, one protein at a time."""
    saved = checkpoint.open_checkpoint(run / f"checkpoints/step-{step - 1:08d}")
    shape = dict(saved.state["settings"]["model"])
    model = ReferenceAMPLIFY(**shape)
    model.load_state_dict(saved.weights())
    total = count = 0
    for window in (window for row in batch["rows"] for window in row["windows"]):
        with torch.no_grad():
            logits = model(torch.tensor([window["input_ids"]]))[0][window["positions"]]
        total += F.cross_entropy(logits, torch.tensor(window["labels"], dtype=torch.int64), reduction="sum").item()
        count += len(window["labels"])
    return total / count


@pytest.mark.parametrize("step", [4, 7, 10])
def test_the_loss_that_was_logged_is_that_of_the_replayed_batch(run, step):
    _, batch = replayed(run, step)
    assert len(batch["rows"]) == 4 and batch["batch"] == step - 1
    logged = losses(run)
    assert loss_by_reference(run, step, batch) == pytest.approx(logged[step], abs=1e-5)
    _, other = replayed(run, step + 1)
    assert abs(loss_by_reference(run, step, other) - logged[step]) > 1e-4, "the loss of another batch differs"


def test_rows_are_those_of_the_shards_and_both_sources_are_read(run, shards):
    opened = {"big": Shards(shards["train"]), "small": Shards(shards["validation"])}
    names = []
    for step in (1, 2, 3):
        _, batch = replayed(run, step)
        for row in batch["rows"]:
            tokens, lengths = opened[row["source"]].row(row["row"])
            assert [w["text"] for w in row["windows"]] == [
                decode(window) for window in np.split(tokens, np.cumsum(lengths))[:-1]
            ]
            assert row["tokens"] == lengths.sum() and row["targets"] == sum(len(w["labels"]) for w in row["windows"])
            for window in row["windows"]:
                ids = list(window["input_ids"])
                for position, label in zip(window["positions"], window["labels"]):
                    ids[position] = label
                assert decode(ids) == window["text"]
        names += batch["sources"]
    assert names.count("big") == 9 and names.count("small") == 3


def test_text_shows_every_protein_with_its_targets(run):
    text, batch = replayed(run, 4, "--rows", 2, 0)
    assert [row["number"] for row in batch["rows"]] == [2, 0]
    assert text.startswith("step 4: batch 3, 4 rows of 1,024 tokens (") and "2 of them follow" in text
    assert f"{sum(row['targets'] for row in batch['rows']):,} targets" in text
    shown = re.findall(r"^ +\d+  (\S+)\n +(\d+) tokens; targets (.*)$", text, re.M)
    windows = [window for row in batch["rows"] for window in row["windows"]]
    assert len(shown) == len(windows)
    for (marked, length, targets), window in zip(shown, windows):
        assert int(length) == len(window["input_ids"])
        expected = [f"{p} {TOKENS[label]}" for p, label in zip(window["positions"], window["labels"])]
        assert targets == (", ".join(expected) or "none")
        # Undo the marks: the model's input, and the original residues.
        parts = re.findall(r"\[(<\w+>|.)(?:>(<\w+>|.))?\]|(<\w+>|.)", marked)
        inputs = [(b or a) if a else "<mask>" if c.islower() and len(c) == 1 else c for a, b, c in parts]
        assert [TOKENS.index(token) for token in inputs] == window["input_ids"]
        assert "".join(a or (c.upper() if len(c) == 1 else c) for a, b, c in parts) == window["text"]


def test_batches_without_an_update_are_not_steps():
    def by_counting(step, skipped):
        applied = [batch for batch in range(100) if batch not in skipped]
        return applied[step - 1]

    assert batch_index(1, {}) == 0 and batch_index(7, {"progress": {}}) == 6
    for skipped in ([0], [5], [3, 4], [9, 0, 1], [2, 6, 7, 30]):
        for step in range(1, 40):
            assert batch_index(step, {"progress": {"skipped": skipped}}) == by_counting(step, skipped)


def test_skipped_batches_and_rows_are_read_from_the_newest_checkpoint(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    _, before = replayed(run, 6)
    first = before["rows"][1]
    file = copy / "checkpoints/step-00000010/state.json"
    state = json.loads(file.read_text())
    state["progress"]["skipped"] = [2]
    state["skips"] = [{"source": first["source"], "row": first["row"], "from": 5}]
    state["state_sha256"] = content_digest(state, "state_sha256")
    file.write_text(json.dumps(state))
    _, after = replayed(copy, 5)
    assert after["batch"] == before["batch"] == 5
    same = [a["row"] == b["row"] for a, b in zip(after["rows"], before["rows"])]
    assert not same[1] and all(same[:1] + same[2:]) and after["sources"] == before["sources"]
    assert replayed(copy, 2)[1]["batch"] == 1


def test_moved_shards_are_given_and_others_refused(run, shards, tmp_path):
    moved = shutil.copytree(shards["train"], tmp_path / "elsewhere")
    sources = [f"big={moved}:6", f"small={shards['validation']}:2"]
    assert replay(run, "--step", 3, "--data.train", *sources) == replay(run, "--step", 3)
    result = python("-m", "amplify_ds.replay", run, "--step", 3, "--data.train", *reversed(sources))
    assert result.returncode == 1 and "was trained on (names, weights or rows differ)" in result.stderr


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--step", 0], "the first step is 1"),
        (["--step", 1, "--rows", 4], "the batch has the rows 0 to 3"),
        (["--step", 1, "--data.train", "absent"], "there is no directory absent"),
    ],
)
def test_bad_input_is_one_message(run, arguments, text):
    result = python("-m", "amplify_ds.replay", run, *arguments)
    assert result.returncode == 1 and text in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_neither_deepspeed_nor_ranks_are_needed(run):
    program = (
        "import sys, torch; from pathlib import Path; from amplify_ds.training.past_batches import rebuild\n"
        f"rebuild(Path({str(run)!r}), 3)\n"
        "assert 'deepspeed' not in sys.modules and not torch.distributed.is_initialized()\n"
    )
    result = interpreter("-c", program)
    assert result.returncode == 0, result.stderr
    refused = python("-m", "amplify_ds.replay", run.parent / "nowhere", "--step", 1)
    assert refused.returncode == 1 and "is" in refused.stderr and "Traceback" not in refused.stderr
