"""Shards and checkpoints of earlier versions can be read, replayed and continued: tests/recorded/kept.

Files in that folder are never rewritten. `losses.json` has the losses of the uninterrupted runs from which these
checkpoints were taken, computed by the code that wrote them.
"""

import json
import shutil

import pytest

from tests.support.outcomes import commands, replayed
from tests.support.recorded import RECORDED, check
from tests.support.training import losses

KEPT = RECORDED / "kept"
FORMATS = {"format 3": "run", "format 2": "format-2"}  # of checkpoints: folder
# All settings of the run that was kept; it has 12 steps in total.
SETTINGS = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 24,
    "training.steps": 12,
    "training.global_batch_tokens": 1024,
    "training.seed": 0,
    "optimizer.lr": 5e-3,
    "optimizer.warmup_steps": 3,
    "optimizer.decay_steps": 18,
    "log.every": 1,
    "evaluation.every": 0,
    "checkpoint.every": 6,
    "checkpoint.keep_last": 9,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return (a copy of the folder, whose runs were continued, {name: outcome})."""
    copy = shutil.copytree(KEPT, tmp_path_factory.mktemp("kept") / "kept")
    jobs = {"verify shards": {"words": ["data_prep/inspect_shards.py", copy / "shards", "--verify"]}}
    settings = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]
    for name, folder in FORMATS.items():
        run, data = copy / folder, f"train={copy / 'shards'}"
        jobs[f"verify {name}"] = {"words": ["-m", "amplify_ds.checkpoints", run, "--verify"]}
        jobs[f"replay {name}"] = {
            "words": [
                "-m",
                "amplify_ds.replay",
                run,
                "--step",
                5,
                "--json",
                copy / f"{folder}.json",
                "--data.train",
                data,
            ]
        }
        arguments = [
            "--recipe",
            "tiny",
            "--deepspeed_config",
            "ds_configs/zero1.json",
            "--output",
            run,
            "--data.train",
            data,
        ]
        jobs[f"continue {name}"] = {"words": ["-m", "amplify_ds.train", *arguments, *settings]}
    return copy, commands(jobs)


def done(outcomes, name: str) -> str:
    outcome = outcomes[1][name]
    assert outcome["code"] == 0, outcome["err"]
    return outcome["out"] + outcome["err"]


def test_shards_are_verified(outcomes):
    assert "all 3 files match their checksums, and their contents are sound" in done(outcomes, "verify shards")


@pytest.mark.parametrize("name", FORMATS)
def test_checkpoints_are_verified_and_continued(outcomes, name):
    assert "verified" in done(outcomes, f"verify {name}")
    assert "6 of 12 steps are done" in done(outcomes, f"continue {name}")
    run = outcomes[0] / FORMATS[name]
    values = {f"step {step:02d}": loss for step, loss in losses(run).items()}
    check("losses", f"kept, {name}", values, relative=1e-5, for_ever=True)
    assert json.loads((run / "result.json").read_text())["steps"] == 12


@pytest.mark.parametrize("name", FORMATS)
def test_batches_are_replayed(outcomes, name):
    done(outcomes, f"replay {name}")
    batch = json.loads((outcomes[0] / f"{FORMATS[name]}.json").read_text())
    check("replay", f"kept, {name}", replayed(batch), for_ever=True)
