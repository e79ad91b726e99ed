"""Stage 2 starts from the weights of stage 1, at another length, and records their origin."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from amplify_ds import config
from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.data.loader import BatchSplit, TrainingBatches
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.training.schedule import learning_rate
from tests.support.commands import python
from tests.support.paths import EXAMPLE
from tests.support.training import SMALL, losses, train

CONSTANT = {"optimizer__schedule": "constant", "optimizer__warmup_steps": 0, "optimizer__lr": 1e-4}


@pytest.fixture(scope="module")
def long_shards(tmp_path_factory):
    path = tmp_path_factory.mktemp("long")
    for name in ("train", "validation"):
        result = python(
            "data_prep/build_shards.py",
            "--input",
            EXAMPLE / f"{name}.fasta.gz",
            "--output",
            path / name,
            "--max-length",
            256,
            "--row-tokens",
            1024,
        )
        assert result.returncode == 0, result.stderr
    return {name: path / name for name in ("train", "validation")}


def test_it_starts_from_the_weights_of_stage_1(four_steps, long_shards, tmp_path):
    output = tmp_path / "run"
    result = train(2, output, long_shards, 2, init_from=four_steps, training__steps=2, **CONSTANT)
    assert result.returncode == 0 and "starting with the weights of" in result.stderr, result.stderr
    assert losses(output)[1] == pytest.approx(first_loss(four_steps, long_shards), abs=1e-5)
    state = json.loads((output / "checkpoints/step-00000002/state.json").read_text())
    origin = state["origin"]
    first = json.loads((four_steps / "checkpoints/step-00000004/state.json").read_text())
    assert origin["step"] == 4 and origin["sha256"] == first["files"]["model.safetensors"]
    assert origin["binding"] == first["binding"] and state["settings"]["optimizer"]["schedule"] == "constant"

    exported = python("-m", "amplify_ds.export", output, tmp_path / "export")
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "export/provenance.json").read_text())["origin"] == origin
    assert origin["sha256"] in (tmp_path / "export/README.md").read_text()
    assert json.loads((tmp_path / "export/config.json").read_text())["max_length"] == 256

    on = train(2, output, long_shards, 2, init_from=four_steps, training__steps=3, **CONSTANT)
    assert on.returncode == 0 and "2 of 3 steps are done" in on.stderr, on.stderr
    other = train(1, output, long_shards, 2, init_from=tmp_path / "export", training__steps=3, **CONSTANT)
    assert other.returncode != 0 and "started with the weights of" in other.stderr and "Traceback" not in other.stderr


def first_loss(four_steps, long_shards) -> float:
    """Return the loss of the first batch, computed by the independent model."""
    run = config.resolve("tiny", None, SMALL)
    model = ReferenceAMPLIFY(**run.model.model_dump())
    model.load_state_dict(load_file(four_steps / "checkpoints/step-00000004/model.safetensors"))
    mixture = Mixture([Source("train", 1, Shards(long_shards["train"]))])
    batch = TrainingBatches(mixture, BatchSplit(4, 4, 1, 0, 1), 0, **run.masking.model_dump())[0]
    bounds = batch.cu_seqlens.unique().tolist()
    segments = [batch.input_ids[a:b] for a, b in zip(bounds, bounds[1:])]
    ids = torch.nn.utils.rnn.pad_sequence(segments, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(s) for s in segments])[:, None]
    with torch.no_grad():
        logits = model(ids, mask)[mask][batch.masked_positions]
    return F.cross_entropy(logits, batch.labels, reduction="sum").item() / batch.targets


def test_a_run_can_start_from_an_exported_folder_of_any_layout(four_steps, shards, tmp_path):
    assert python("-m", "amplify_ds.export", four_steps, tmp_path / "export", "--layout", "megatron").returncode == 0
    for name, source in (("a", four_steps), ("b", tmp_path / "export")):
        result = train(1, tmp_path / name, shards, init_from=source, training__steps=1)
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    origins = [
        json.loads(next((tmp_path / name / "checkpoints").glob("*/state.json")).read_text())["origin"] for name in "ab"
    ]
    assert [origin["layout"] for origin in origins] == ["hf", "megatron"]
    assert origins[1]["exported_from"][0]["sha256"] == origins[0]["sha256"] and origins[1]["step"] == 4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model__num_hidden_layers": 3}, "the weights of another model"),
        ({"init_from": "nowhere"}, "nowhere: is not a checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_refused(four_steps, shards, tmp_path, settings, message):
    result = train(1, tmp_path / "run", shards, **{"init_from": four_steps, **settings})
    assert result.returncode != 0 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("size, steps", [("120M", 25_000), ("350M", 50_000)])
def test_the_recipes_are_the_published_ones(size, steps):
    """chandar-lab/AMPLIFY, README and conf/: 2,048 tokens, constant 1e-4, from the weights of stage 1."""
    first, second = (config.resolve(name, None, {}) for name in (size, f"{size}-stage2"))
    assert second.training.steps == steps and second.model == first.model and second.masking == first.masking
    assert {learning_rate(step, second.optimizer) for step in (0, 1, steps - 1)} == {1e-4}
