"""Validation sets that share proteins with training: the warnings, and that training continues."""

import json

import dnaio
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.training import overlap
from tests.support.commands import python
from tests.support.paths import EXAMPLE
from tests.support.training import train


def build(output, *arguments):
    result = python(
        "data_prep/build_shards.py", "--output", output, *arguments, "--max-length", 96, "--row-tokens", 1024
    )
    assert result.returncode == 0, result.stderr
    return Shards(output)


@pytest.fixture(scope="module")
def opened(shards, tmp_path_factory):
    """held_out: 30 proteins; among: the first 9 of them and others; other_rows: the 30 in another order."""
    folder = tmp_path_factory.mktemp("overlap")
    records = (shards["validation"].parent / "validation.fasta").read_text().split(">")[1:]
    more = (shards["train"].parent / "train.fasta").read_text()
    (folder / "among.fasta").write_text(more + "".join(f">{record}" for record in records[:9]))
    held_out = shards["validation"].parent / "validation.fasta"
    return {
        "held_out": Shards(shards["validation"]),
        "other_rows": build(folder / "other_rows", "--input", held_out, "--seed", 5),
        "among": build(folder / "among", "--input", folder / "among.fasta"),
        "apart": build(folder / "apart", "--input", folder / "among.fasta", "--exclude", held_out),
    }


def proteins(path):
    """Return the proteins of a FASTA file that fit into a window of 96 tokens."""
    with dnaio.open(path) as reader:
        return {record.sequence for record in reader if len(record.sequence) + 2 <= 96}


def warnings(opened, *training):
    mixture = Mixture([Source(name, 1, opened[name]) for name in training])
    return overlap.warnings(mixture, {"v": opened["held_out"]})


def test_the_same_rows_and_shared_proteins_give_warnings(opened, monkeypatch):
    [line] = warnings(opened, "held_out")
    assert "validation set v is the training source held_out, row for row" in line
    held_out = proteins(opened["held_out"].path.with_suffix(".fasta"))
    for name, fasta in (("other_rows", opened["held_out"]), ("among", opened["among"])):
        shared = len(held_out & proteins(fasta.path.with_suffix(".fasta")))
        assert shared > 1 and warnings(opened, name)[0].startswith(f"{shared} of {len(held_out)} proteins")
    assert warnings(opened, "apart") == []
    assert len(warnings(opened, "apart", "among", "held_out")) == 2
    monkeypatch.setattr(overlap, "READ", 1000)
    assert warnings(opened, "among") == [] and len(warnings(opened, "held_out")) == 1, (
        "large sets are compared by fingerprint only"
    )


def test_training_goes_on_and_the_warning_stays(opened, shards, tmp_path):
    both = {"train": opened["among"].path, "validation": opened["held_out"].path}
    result = train(2, tmp_path / "run", both, training__steps=2)
    assert result.returncode == 0, result.stderr
    [line] = json.loads((tmp_path / "run/result.json").read_text())["warnings"]
    assert "proteins of the validation set held_out are in the training source among too" in line
    assert result.stderr.count(f"warning: {line}") == 1 and f"warning: {line}" in result.stdout.splitlines()
    assert f"warning: {line}" in (tmp_path / "run/logs/rank-00000.log").read_text()
    events = EventAccumulator(str(tmp_path / "run/events"))
    events.Reload()
    [text] = events.Tensors("warnings/text_summary")
    assert text.tensor_proto.string_val[0].decode() == line
    arguments = ["--recipe", "tiny", "--output", "x", "--training.global_batch_tokens", 1024, "--dry-run"]
    arguments += ["--data.train", both["train"], "--data.validation", both["validation"]]
    dry_run = python("-m", "amplify_ds.train", *arguments)
    assert dry_run.returncode == 0 and "in the training source among too" in dry_run.stderr
    clean = train(1, tmp_path / "clean", shards, training__steps=2)
    assert clean.returncode == 0 and "warning: " not in clean.stdout + clean.stderr


def test_the_bundled_sets_share_nothing(tmp_path):
    sets = {
        name: build(tmp_path / name, "--input", EXAMPLE / f"{name}.fasta.gz", *more)
        for name, more in (("validation", []), ("train", ["--exclude", EXAMPLE / "validation.fasta.gz"]))
    }
    assert overlap.warnings(Mixture([Source("train", 1, sets["train"])]), {"v": sets["validation"]}) == []
