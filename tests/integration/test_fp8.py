"""FP8: settings that are refused, and that replacing layers changes neither parameters nor results, except rounding.

TransformerEngine needs a GPU. Without one, a stand-in whose Linear is torch's takes its place; this tests what
`replace_linears` does to a model, but nothing about FP8.
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
    """Return the error message of `check`."""
    required = {"data.train": ["t"], "data.validation": ["v"]}
    base = SMALL | FITS if recipe == "tiny" else {"training.precision": "fp8"}
    run_config = config.resolve(recipe, None, required | base | {k.replace("__", "."): v for k, v in changes.items()})
    with pytest.raises(AmplifyError) as error:
        fp8.check(run_config, derived.model_config(run_config, 512), row_tokens, device_type)
    return str(error.value)


def test_sizes_that_do_not_fit_are_named():
    assert "model.hidden_size is 40, which is not a multiple of 16" in checked(
        model__hidden_size=40, model__num_attention_heads=1
    )
    assert "the SwiGLU width that follows from model.intermediate_size is 88" in checked(model__intermediate_size=128)
    assert "the tokens of a micro batch (training.micro_batch_rows) is 1000" in checked(row_tokens=1000)
    assert "this device does not support FP8; use a GPU of the Ada or Hopper generation" in checked(
        row_tokens=1000, training__micro_batch_rows=2
    )
    for setting in ("activation_checkpointing", "compile"):
        assert f"training.{setting} is not supported together with fp8" in checked(**{f"training__{setting}": "true"})


@pytest.mark.parametrize("recipe", ["120M", "350M", "120M-stage2", "350M-stage2"])
def test_the_published_sizes_fit(recipe):
    assert "this device does not support FP8" in checked(row_tokens=8192, recipe=recipe)


def test_without_the_package_it_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    message = checked(device_type="cuda")
    assert "TransformerEngine 2.9 or newer cannot be used" in message
    assert "pip install" in message and "bf16" in message


def test_a_run_on_a_cpu_is_refused_before_it_exists(shards, tmp_path):
    result = train(1, tmp_path / "run", shards, **{key.replace(".", "__"): value for key, value in FITS.items()})
    assert result.returncode == 1 and "this device does not support FP8" in result.stderr, result.stderr
    assert "--training.precision bf16" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_it_is_bfloat16_for_deepspeed_and_memory(shards):
    run_config = config.resolve("tiny", None, SMALL | {"data.train": ["t"], "data.validation": ["v"]})
    for stage in (0, 1):
        zero = {"zero_optimization": {"stage": stage}}
        assert ds_config.merge(zero, run_config, 1, 1, "fp8") == ds_config.merge(zero, run_config, 1, 1, "bf16")
        memory = [
            derived.memory_per_device(run_config, derived.model_config(run_config, 512), 1024, stage, 1, p)
            for p in ("fp8", "bf16")
        ]
        assert memory[0] == memory[1]
    assert derived.resolve_precision("fp8", "cuda") == "fp8" and derived.resolve_precision("auto", "cuda") == "bf16"


class StandIn(nn.Linear):
    """Has the arguments of TransformerEngine's Linear, different initial weights and extra state."""

    def __init__(self, in_features, out_features, bias=True, params_dtype=None, device="cuda"):
        super().__init__(in_features, out_features, bias=bias, dtype=params_dtype, device=device)

    def get_extra_state(self):
        return torch.zeros(3)


@pytest.fixture
def stand_in(monkeypatch):
    """Replace TransformerEngine; return the list of the arguments of autocast."""
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


def test_layers_are_replaced_and_parameters_stay(stand_in):
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
    replaced = [name for name, module in model.named_modules() if isinstance(module, StandIn)]
    assert replaced == [
        f"transformer_encoder.{block}.{name}" for block in (0, 1) for name in ("q", "k", "v", "wo", "ffn.w12", "ffn.w3")
    ]
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    output = model(tokens, labels=tokens)
    output.loss.backward()
    assert stand_in == [(True, "hybrid")]
    torch.testing.assert_close(output.logits, expected.logits)
    for name, parameter in after.items():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)  # three matrix products instead of one
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
    """Checkpoints have the same tensors as with bf16, and the run continues from them."""
    for precision in ("bf16", "fp8"):
        settings = dict(model__intermediate_size=144, training__precision=precision, checkpoint__every=5)
        result = run(
            *launch_words(1, tmp_path / precision, shards, stage, **settings, training__steps=5), env=dict(os.environ)
        )
        assert result.returncode == 0, result.stderr
        result = run(*launch_words(1, tmp_path / precision, shards, stage, **settings), env=dict(os.environ))
        assert result.returncode == 0 and "5 of 10 steps are done" in result.stderr, result.stderr
    in_fp8, in_bf16 = losses(tmp_path / "fp8"), losses(tmp_path / "bf16")
    assert list(in_fp8.values()) == pytest.approx(list(in_bf16.values()), abs=1e-1)
    assert in_fp8 != in_bf16, "FP8 was not used"
