"""Commands as users meet them: help and dry runs."""

import json
import os
import re

import pytest

from tests.support.commands import interpreter, python

HELP = [
    "data_prep/build_shards.py",
    "data_prep/inspect_shards.py",
    "data_prep/fetch_ur100p.py",
    "data_prep/decontaminate.py",
    "-m amplify_ds.train",
    "-m amplify_ds.evaluate",
    "-m amplify_ds.export",
    "-m amplify_ds.embed",
    "-m amplify_ds.score",
    "-m amplify_ds.contacts",
    "-m amplify_ds.contacts fit",
    "-m amplify_ds.contacts evaluate",
    "-m amplify_ds.contacts predict",
    "-m amplify_ds.plot",
    "-m amplify_ds.replay",
    "-m amplify_ds.checkpoints",
    "launch/try_export.py",
]


@pytest.mark.parametrize("command", HELP)
def test_help_teaches_with_an_example(command):
    """The terminal supports only ASCII: other characters are escaped, and cause no error."""
    result = interpreter(*command.split(), "--help", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    name = command.split()[-1].removesuffix(".py").split("/")[-1]
    assert len(re.findall(re.escape(name), result.stdout)) >= 2, "usage and an example"


def test_dry_run_prints_the_plan_and_makes_nothing(shards, tmp_path):
    arguments = ["--recipe", "120M", "--output", tmp_path / "run", "--data.train", shards["train"], "--dry-run"]
    result = python("-m", "amplify_ds.train", *arguments, "--training.micro_batch_rows", 8)
    assert result.returncode == 0, result.stderr
    for text in (
        "118,276,507",
        "1,310,720 = 1280 rows of 1,024: 1 devices × 8 rows × 160 accumulated",
        "steps per epoch",
        "memory, activations",
        "lr: 0.001",
    ):
        assert text in result.stdout, result.stdout
    assert not (tmp_path / "run").exists()


def test_dry_run_of_a_mixture_prints_steps_per_epoch_of_each_source(shards, tmp_path):
    rows = {name: json.loads((shards[name] / "manifest.json").read_text())["counts"]["rows"] for name in shards}
    arguments = ["--recipe", "tiny", "--output", tmp_path / "run", "--training.global_batch_tokens", 8192, "--dry-run"]
    mixture = [f"a={shards['train']}:30", f"{shards['validation']}:10"]
    result = python("-m", "amplify_ds.train", *arguments, "--training.steps", 50, "--data.train", *mixture)
    assert result.returncode == 0, result.stderr
    for name, weight, share in (("train", 3, 0.75), ("validation", 1, 0.25)):
        shown = "source a" if name == "train" else "source validation"
        line = next(line for line in result.stdout.splitlines() if line.startswith(shown))
        assert f"weight {weight}, {rows[name]} rows in" in line, line
        assert (
            f"steps per epoch {rows[name] / (8 * share):,.1f}, epochs in total {400 * share / rows[name]:,.2f}" in line
        )


@pytest.mark.parametrize(
    "extra, text",
    [
        (["--training.global_batch_tokens", "1000"], "such as --training.global_batch_tokens 1024"),
        (["--deepspeed_config", "absent.json"], "no such DeepSpeed file"),
        (["--data.train", "absent"], "there is no directory absent"),
        (["--model.num_attention_heads", "7"], "hidden_size 640"),
        (["--optimizer.leraning_rate", "1"], "no such setting"),
    ],
)
def test_bad_input_is_one_message(shards, tmp_path, extra, text):
    arguments = ["--recipe", "120M", "--output", tmp_path / "run", "--data.train", shards["train"], "--dry-run"]
    result = python("-m", "amplify_ds.train", *arguments, *extra)
    assert result.returncode == 1 and text in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "run").exists()
