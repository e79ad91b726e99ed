"""Exported folders, loaded in another process without amplify_ds."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.hub.folder import load_model
from tests.support.commands import other_packages, python
from tests.support.paths import ROOT

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


@pytest.fixture(scope="module")
def exported(four_steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "folder"
    result = python("-m", "amplify_ds.export", four_steps, folder)
    assert result.returncode == 0, result.stderr
    assert "the logits differ by at most" in result.stdout
    return folder


@pytest.mark.parametrize("version", ["transformers5", "transformers4"])
def test_logits_without_this_package_agree_with_the_reference(exported, four_steps, version, tmp_path):
    """With every kind of mask, on the meta device, with device_map, in half precision and compiled: see stranger.py."""
    environment = other_packages(version) | {"HF_HOME": str(tmp_path)}
    folder = shutil.copytree(exported, tmp_path / "folder")
    result = subprocess.run(
        [sys.executable, ROOT / "tests/support/stranger.py", folder, PROTEIN],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout.splitlines()[-1])
    assert output["version"].startswith(version[-1])
    weights = load_file(four_steps / "checkpoints/step-00000004/model.safetensors")
    reference = ReferenceAMPLIFY(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128)
    reference.load_state_dict(weights, strict=True)
    ids = torch.tensor(output["ids"])
    mask = ids != 0
    with torch.no_grad():
        expected = reference(ids, mask)[mask]
    torch.testing.assert_close(torch.tensor(output["logits"])[mask], expected, atol=1e-5, rtol=1e-5)
    assert output["shape"] == [2, len(PROTEIN) + 2, 64] and output["layers"] == 3
    assert output["first_is_embedding"] and output["last_is_normalised"]
    assert output["half"] == "torch.bfloat16" and output["half_error"] < 0.05
    assert output["same_again"] and output["embeddings"] == 27 and output["length"] == 96
    assert len(output["differences"]) == 10 and max(output["differences"].values()) < 1e-5, output["differences"]


def test_weights_are_exported_bit_for_bit_with_published_names(exported, four_steps):
    exported_weights = load_file(exported / "model.safetensors")
    weights = load_file(four_steps / "checkpoints/step-00000004/model.safetensors")
    assert (
        exported_weights.keys()
        == weights.keys()
        == ReferenceAMPLIFY(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128)
        .state_dict()
        .keys()
    )
    assert all(torch.equal(exported_weights[k], weights[k]) for k in exported_weights)
    files = (exported / "model.safetensors", four_steps / "checkpoints/step-00000004/model.safetensors")
    assert files[0].read_bytes() == files[1].read_bytes(), "the quick start compares the files"


def test_config_has_the_published_fields(exported):
    config = json.loads((exported / "config.json").read_text())
    published = dict(
        _name_="AMPLIFY",
        architectures=["AMPLIFY"],
        model_type="AMPLIFY",
        att_bias=False,
        ffn_bias=False,
        bos_token_id=3,
        eos_token_id=4,
        mask_token_id=2,
        pad_token_id=0,
        unk_token_id=1,
        other_special_token_ids=None,
        decoder_init_range=0.02,
        embedding_init_range=0.02,
        dropout_prob=0,
        hidden_act="SwiGLU",
        layer_norm_after_embedding=False,
        layer_norm_before_last_layer=True,
        norm_eps=1e-5,
        pre_activation_layer_norm=True,
        rms_norm=True,
        torch_dtype="float32",
        vocab_path="conf/tokenizer/amplify_vocab.txt",
        vocab_size=27,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_length=96,
    )
    assert {key: config.get(key) for key in published} == published


def test_card_and_provenance_describe_the_run(exported, four_steps):
    card, provenance = (exported / "README.md").read_text(), json.loads((exported / "provenance.json").read_text())
    state = json.loads((four_steps / "checkpoints/step-00000004/state.json").read_text())
    location = {"path": str(four_steps), "layout": "hf", "sha256": state["files"]["model.safetensors"]}
    assert provenance.pop("exported_from") == [location]
    assert provenance == {key: state[key] for key in ("step", "settings", "binding", "progress", "precision", "origin")}
    for text in (
        "4 optimizer steps of 4,096 tokens (16,384 in total",
        f"{state['progress']['residues']:,}\nresidues read",
        f"| train | 1 | `{state['binding']['training data'][0]['fingerprint']}` |",
        location["sha256"],
        "Apache 2.0",
        "hidden_size: 64",
        *(f"| held_out | {x['protocol']} | 4 | {x['perplexity']:.3f} |" for x in state["progress"]["history"][-2:]),
    ):
        assert text in card, text


def test_evaluating_checkpoint_run_and_export_gives_one_number(exported, four_steps, shards):
    outputs = set()
    for model in (four_steps, four_steps / "checkpoints/step-00000004", exported):
        result = python(
            "-m", "amplify_ds.evaluate", "--model", model, "--data", shards["validation"], "--json", "--max-rows", 4
        )
        assert result.returncode == 0, result.stderr
        scores = json.loads(result.stdout)
        assert {score.pop("model") for score in scores} == {str(model)}
        outputs.add(json.dumps(scores))
    assert len(outputs) == 1
    score = next(score for score in json.loads(outputs.pop()) if score["protocol"] == "mask_only")
    last = json.loads((four_steps / "result.json").read_text())["evaluations"][-1]
    assert score["targets"] == last["targets"] and score["loss"] == pytest.approx(last["loss"], abs=1e-5)


def test_bad_arguments_are_refused(exported, four_steps, shards, tmp_path):
    def refused(text, *arguments):
        result = python("-m", *arguments)
        assert result.returncode == 1 and text in result.stderr and "Traceback" not in result.stderr, result.stderr

    before = sorted(os.listdir(exported))
    refused("exists already", "amplify_ds.export", four_steps, exported)
    assert sorted(os.listdir(exported)) == before
    refused("is not a checkpoint", "amplify_ds.export", tmp_path, tmp_path / "out")
    refused("is not a checkpoint", "amplify_ds.evaluate", "--model", tmp_path, "--data", shards["validation"])
    refused("there is no directory", "amplify_ds.evaluate", "--model", exported, "--data", tmp_path / "absent")
    refused("no TensorBoard events", "amplify_ds.plot", tmp_path)


def test_weights_that_do_not_match_the_configuration_are_refused(exported, tmp_path):
    from amplify_ds.errors import AmplifyError

    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    os.symlink(exported / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(
        AmplifyError, match=r"8 missing: transformer_encoder\.2\.attention_norm.* transformer_encoder\.2\.wo"
    ):
        load_model(tmp_path)


def test_plots_are_drawn_from_the_events(four_steps, tmp_path):
    result = python("-m", "amplify_ds.plot", four_steps, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    from matplotlib.image import imread

    for name in ("training_loss.png", "validation_loss.png", "validation_ppl.png"):
        picture = imread(tmp_path / name)
        assert min(picture.shape[:2]) > 600 and picture[..., :3].std() > 0.05, name


def test_try_export_of_the_quick_start(exported):
    result = python(ROOT / "launch/try_export.py", exported)
    assert result.returncode == 0, result.stderr
    assert "embeddings (1, " in result.stdout and result.stdout.count("%") == 5
