"""FP8: what is refused, and that exchanging the layers changes neither parameters nor, but for rounding, results.

TransformerEngine needs a GPU. Where there is none a stand-in takes its place, whose Linear is a plain torch one: it
shows what `replace_linears` does to a model, and nothing about FP8.
"""

import os
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from amplify_ds import config
from amplify_ds.errors import AmplifyError
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.model.modeling_amplify import AMPLIFY
from amplify_ds.training import derived, ds_config, fp8
from tests.support.commands import run
from tests.support.training import SMALL, launch_words, losses, train

FITS = {"training.precision": "fp8", "model.intermediate_size": 144}  # 64 and 96 wide


def checked(row_tokens=1024, device_type="cpu", recipe="tiny", **changes) -> str:
    """What `check` says."""
    needed = {"data.train": ["t"], "data.validation": ["v"]}
    base = SMALL | FITS if recipe == "tiny" else {"training.precision": "fp8"}
    asked = config.resolve(recipe, None, needed | base | {k.replace("__", "."): v for k, v in changes.items()})
    with pytest.raises(AmplifyError) as error:
        fp8.check(asked, derived.model_config(asked, 512), row_tokens, device_type)
    return str(error.value)


def test_what_does_not_fit_is_named():
    assert "model.hidden_size is 40, no multiple of 16" in checked(model__hidden_size=40, model__num_attention_heads=1)
    assert "the SwiGLU width that follows from model.intermediate_size is 88" in checked(model__intermediate_size=128)
    assert "the tokens of a micro batch (training.micro_batch_rows) is 1000" in checked(row_tokens=1000)
    assert "it needs a GPU with FP8 (Ada, Hopper or newer), which this device is not" in checked(
        row_tokens=1000, training__micro_batch_rows=2
    )
    for setting in ("activation_checkpointing", "compile"):
        assert f"training.{setting} is not supported together with it" in checked(**{f"training__{setting}": "true"})


@pytest.mark.parametrize("recipe", ["120M", "350M", "120M-stage2", "350M-stage2"])
def test_the_published_sizes_fit(recipe):
    assert "it needs a GPU with FP8" in checked(row_tokens=8192, recipe=recipe)


def test_without_the_package_it_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    said = checked(device_type="cuda")
    assert "TransformerEngine 2.9 or newer cannot be used" in said and "pip install" in said and "bf16" in said


def test_a_run_on_a_cpu_is_refused_before_it_exists(shards, tmp_path):
    result = train(1, tmp_path / "run", shards, **{key.replace(".", "__"): value for key, value in FITS.items()})
    assert result.returncode == 1 and "needs a GPU with FP8" in result.stderr, result.stderr
    assert "--training.precision bf16" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_it_is_bfloat16_for_deepspeed_and_memory(shards):
    asked = config.resolve("tiny", None, SMALL | {"data.train": ["t"], "data.validation": ["v"]})
    for stage in (0, 1):
        zero = {"zero_optimization": {"stage": stage}}
        assert ds_config.merge(zero, asked, 1, 1, "fp8") == ds_config.merge(zero, asked, 1, 1, "bf16")
        told = [
            derived.memory_per_device(asked, derived.model_config(asked, 512), 1024, stage, 1, p)
            for p in ("fp8", "bf16")
        ]
        assert told[0] == told[1]
    assert derived.resolve_precision("fp8", "cuda") == "fp8" and derived.resolve_precision("auto", "cuda") == "bf16"


class StandIn(nn.Linear):
    """Takes what TransformerEngine's Linear takes, starts with other weights, keeps state that is no parameter."""

    def __init__(self, in_features, out_features, bias=True, params_dtype=None, device="cuda"):
        super().__init__(in_features, out_features, bias=bias, dtype=params_dtype, device=device)

    def get_extra_state(self):
        return torch.zeros(3)


@pytest.fixture
def stand_in(monkeypatch):
    """Returns the list of what autocast was entered with."""
    entered = []

    @contextmanager
    def autocast(enabled, recipe):
        entered.append((enabled, recipe))
        yield

    recipe = ModuleType("transformer_engine.common.recipe")
    recipe.Format, recipe.Float8CurrentScaling = SimpleNamespace(HYBRID="hybrid"), lambda fp8_format: fp8_format
    pytorch, common, top = (ModuleType(name) for name in ("te.pytorch", "te.common", "te"))
    pytorch.Linear, pytorch.autocast, common.recipe, top.pytorch, top.common = (
        StandIn,
        autocast,
        recipe,
        pytorch,
        common,
    )
    for name, module in (("", top), (".pytorch", pytorch), (".common", common), (".common.recipe", recipe)):
        monkeypatch.setitem(sys.modules, f"transformer_engine{name}", module)
    return entered


def test_layers_are_exchanged_and_parameters_stay(stand_in):
    shape = AMPLIFYConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=144)
    torch.manual_seed(0)
    model = AMPLIFY(shape)
    before = dict(model.named_parameters())
    tokens = torch.randint(6, 26, (2, 32))
    expected = model(tokens, labels=tokens)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in before.items()}
    model.zero_grad()

    fp8.replace_linears(model, torch.device("cpu"))
    exchanged = [name for name, module in model.named_modules() if isinstance(module, StandIn)]
    assert exchanged == [
        f"transformer_encoder.{block}.{name}" for block in (0, 1) for name in ("q", "k", "v", "wo", "ffn.w12", "ffn.w3")
    ]
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    found = model(tokens, labels=tokens)
    found.loss.backward()
    assert stand_in == [(True, "hybrid")]
    torch.testing.assert_close(found.logits, expected.logits)
    for name, parameter in after.items():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)  # three products instead of one
    model.eval()(tokens)
    assert stand_in[1:] == [(False, "hybrid")], "evaluation is in bf16"


def has_fp8() -> bool:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < fp8.OLDEST:
        return False
    try:
        return fp8._transformer_engine() is not None
    except AmplifyError:
        return False


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8(), reason="GPU test: no CUDA device with FP8 and TransformerEngine here, not run")
@pytest.mark.parametrize("stage", [1, 3])
def test_fp8_on_a_gpu_stays_near_bfloat16_and_is_resumed(shards, tmp_path, stage):
    """Checkpoints are those of bf16: the same tensors by name, and the run goes on from them."""
    for precision in ("bf16", "fp8"):
        words = dict(model__intermediate_size=144, training__precision=precision, checkpoint__every=5)
        result = run(
            *launch_words(1, tmp_path / precision, shards, stage, **words, training__steps=5), env=dict(os.environ)
        )
        assert result.returncode == 0, result.stderr
        result = run(*launch_words(1, tmp_path / precision, shards, stage, **words), env=dict(os.environ))
        assert result.returncode == 0 and "5 of 10 steps are done" in result.stderr, result.stderr
    found, expected = losses(tmp_path / "fp8"), losses(tmp_path / "bf16")
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=1e-1)
    assert found != expected, "FP8 was not used"
