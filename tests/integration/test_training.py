"""Training through the real launcher, against a plain PyTorch loop around the independent reference model."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from amplify_ds.data.masking import PROTOCOLS
from tests.support.commands import run
from tests.support.needs import needs_compiler
from tests.support.plain_training import plain_training
from tests.support.training import launch, launch_words, losses, train


@pytest.fixture(scope="module")
def plain(shards):
    return plain_training(shards)


@pytest.mark.parametrize(
    "stage, ranks, settings",
    [
        (0, 2, {}),
        ("2_overlap", 2, {}),
        (3, 2, {"training__activation_checkpointing": "true"}),
        (1, 1, {"data__workers": 2}),
        ("2_offload", 2, {}),
        ("3_offload", 2, {}),
        (2, 3, {}),  # 4 rows: two ranks with a row and one of padding, one with two rows
        (1, 3, {"training__micro_batch_rows": 8}),
        pytest.param(
            1,
            2,
            {"training__compile": "true", "training__micro_batch_rows": 2},
            marks=[pytest.mark.slow, needs_compiler],
        ),
    ],
)
def test_every_stage_trains_as_one_plain_process_does(plain, shards, tmp_path, stage, ranks, settings):
    from amplify_ds.plot import read_scalars

    start = launch if "training__compile" in settings else train
    result = start(ranks, tmp_path / "run", shards, stage, **settings)
    assert result.returncode == 0, result.stderr
    expected_losses, expected_norms, weights = plain
    scalars = read_scalars(tmp_path / "run")
    assert scalars["train/loss"][0] == list(range(1, 11))
    assert scalars["train/loss"][1] == pytest.approx(expected_losses, abs=1e-5)
    assert scalars["train/gradient_norm"][1] == pytest.approx(expected_norms, rel=1e-4)
    assert expected_losses[-1] < expected_losses[0] - 0.1
    saved = load_file(tmp_path / "run/checkpoints/step-00000010/model.safetensors")
    assert saved.keys() == weights.keys()
    for name in saved:
        torch.testing.assert_close(
            saved[name], weights[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_bfloat16_stays_near_float32(plain, shards, tmp_path):
    for stage in (0, 1):
        result = train(1, tmp_path / f"{stage}", shards, stage, training__precision="bf16", training__steps=3)
        assert result.returncode == 0, result.stderr
        assert list(losses(tmp_path / f"{stage}").values()) == pytest.approx(plain[0][:3], abs=1e-2)


def test_a_complete_run_prints_its_results_and_is_not_repeated(shards, tmp_path):
    two_sets = {"training__steps": 2, "data__validation": f"more={shards['train']}"}  # in addition to held_out
    first = train(1, tmp_path / "run", shards, **two_sets)
    assert first.returncode == 0 and "complete: 2 steps" in first.stdout, first.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert {(e["step"], e["set"], e["protocol"]) for e in result["evaluations"]} == {
        (step, name, protocol) for step in (0, 2) for name in ("held_out", "more") for protocol in PROTOCOLS
    }
    again = train(1, tmp_path / "run", shards, **two_sets)
    assert again.returncode == 0 and "already complete: 2 steps" in again.stdout
    assert json.loads((tmp_path / "run/result.json").read_text()) == result

    other = train(1, tmp_path / "run", shards, training__steps=2, optimizer__lr=0.01)
    assert other.returncode != 0
    assert "optimizer.lr: the run has 0.005, this command has 0.01" in other.stderr and "Traceback" not in other.stderr
    assert json.loads((tmp_path / "run/result.json").read_text()) == result


def test_names_weights_and_rows_of_the_sources_bind_a_run_and_paths_do_not(shards, tmp_path):
    def resumed(directory, weight, name="small"):
        sources = {**shards, "train": f"{shards['train']}:2"}
        other = f"{name}={directory}:{weight}"
        return train(1, tmp_path / "run", sources, training__steps=2, data__train=other)

    first = resumed(shards["validation"], 1)
    assert first.returncode == 0, first.stderr
    moved = shutil.copytree(shards["validation"], tmp_path / "moved")
    again = resumed(moved, 1)
    assert again.returncode == 0 and "already complete: 2 steps" in again.stdout, again.stderr
    for change in ((moved, 3), (moved, 1, "renamed"), (shards["train"], 1)):
        refused = resumed(*change)
        assert refused.returncode != 0 and "training data: the run has [{'name': 'train', 'weight': 2" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU test: no CUDA device here, not run")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_on_a_gpu_stays_near_float32(plain, shards, tmp_path, stage):
    command = launch_words(1, tmp_path / "run", shards, stage, training__precision="bf16")
    result = run(*command, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert list(losses(tmp_path / "run").values()) == pytest.approx(plain[0], abs=5e-2)


def test_an_error_of_deepspeed_is_one_message(shards, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1, "stagee": 2}}')
    result = train(1, tmp_path / "run", shards, deepspeed_config=tmp_path / "ds.json")
    assert result.returncode != 0 and "DeepSpeed rejects its configuration" in result.stderr, result.stderr
    assert "stagee" in result.stderr and "Traceback" not in result.stderr


def test_altered_shards_are_refused_before_training(shards, tmp_path):
    copy = shutil.copytree(shards["train"], tmp_path / "train")
    with open(copy / "shard-00000.tokens.npy", "r+b") as file:
        file.seek(-3000, os.SEEK_END)
        file.write(bytes([7]))
    result = train(1, tmp_path / "run", {**shards, "train": copy})
    assert result.returncode != 0 and "shard-00000.tokens.npy was altered" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_divergence_ends_the_run_with_a_message(shards, tmp_path):
    result = train(
        1, tmp_path / "run", shards, optimizer__lr=1e30, optimizer__gradient_clipping=0, optimizer__warmup_steps=0
    )
    assert result.returncode != 0 and "training has diverged" in result.stderr and "Traceback" not in result.stderr
