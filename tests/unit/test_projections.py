"""Queries, keys and values are one matrix product only if the three layers are plain (see layers.py)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.model.layers import EncoderBlock
from tests.support.commands import other_packages
from tests.support.paths import ROOT

SIZE = 128


@pytest.fixture
def block():
    torch.manual_seed(0)
    return EncoderBlock(AMPLIFYConfig(hidden_size=SIZE, num_attention_heads=2, intermediate_size=SIZE))


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(7, SIZE)


def products(block):
    """Return the number of matrix products in `queries_keys_values`, the calls of `linear`."""
    calls = []

    class Counted(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.linear:
                calls.append(args[1].shape)
            return function(*args, **(kwargs or {}))

    with Counted():
        block.queries_keys_values(torch.randn(3, SIZE))
    return len(calls)


def separate_products(block, x):
    return torch.cat([block.q(x), block.k(x), block.v(x)], -1)


def test_plain_layers_are_one_product(block, x):
    assert products(block) == 1
    torch.testing.assert_close(block.queries_keys_values(x), separate_products(block, x))


def test_a_bias_that_was_set_is_added(block, x):
    block.v.bias = nn.Parameter(torch.randn(SIZE))
    expected = torch.cat([x @ block.q.weight.T, x @ block.k.weight.T, x @ block.v.weight.T + block.v.bias], -1)
    torch.testing.assert_close(block.queries_keys_values(x), expected)
    assert products(block) == 3


class Halves(torch.Tensor):
    """A weight with its own product, like quantised ones, that cannot be concatenated."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight = args[:2]
            return F.linear(x, weight.as_subclass(torch.Tensor)) / 2
        if function is torch.cat:
            raise NotImplementedError("this weight cannot be concatenated")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("names", ["q", "qkv"])
def test_a_weight_subclass_uses_its_own_product(names, block, x):
    expected = [f.weight.detach() / (2 if name in names else 1) for name, f in zip("qkv", (block.q, block.k, block.v))]
    for name in names:
        layer = getattr(block, name)
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Halves), requires_grad=False)
        assert type(layer) is nn.Linear and type(layer.weight) is Halves
    torch.testing.assert_close(block.queries_keys_values(x), torch.cat([x @ w.T for w in expected], -1))


def test_a_parametrized_weight_is_computed(block, x):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    expected = torch.cat([x @ block.q.weight.T, 2 * x @ block.k.weight.T, x @ block.v.weight.T], -1).detach()
    nn.utils.parametrize.register_parametrization(block.k, "weight", Doubled())
    torch.testing.assert_close(block.queries_keys_values(x), expected)


def test_weights_of_other_types_are_not_promoted(block, x):
    """Concatenation would promote all three to float32; torch refuses the product of float32 and bfloat16."""
    block.k.bfloat16()
    with pytest.raises(RuntimeError, match="dtype"):
        block.queries_keys_values(x)


@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_hook_is_called(kind, everywhere, block, x):
    called = []

    def hook(module, *_):
        called.append(module)

    if everywhere:
        handle = getattr(nn.modules.module, f"register_module_{kind}")(hook)
    else:
        handle = getattr(block.k, f"register_{kind}")(hook)
    try:
        x.requires_grad_()
        block.queries_keys_values(x).sum().backward()
    finally:
        handle.remove()
    assert set(called) == ({block.q, block.k, block.v} if everywhere else {block.k})
    assert products(block) == 1


def test_a_layer_that_replaces_a_projection_is_called(block, x):
    """As with adapters: a module with the weight of the one it replaces, which adds to its product."""

    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    expected = torch.cat([block.q(x) + 1, block.k(x), block.v(x)], -1)
    adapted = Adapted(SIZE, SIZE, bias=False)
    adapted.weight = block.q.weight
    block.q = adapted
    torch.testing.assert_close(block.queries_keys_values(x), expected)


def test_a_forward_that_was_replaced_is_called(block, x):
    expected = torch.cat([block.q(x), block.k(x) + 1, block.v(x)], -1)
    forward = block.k.forward
    block.k.forward = lambda x: forward(x) + 1
    torch.testing.assert_close(block.queries_keys_values(x), expected)


@pytest.mark.slow
def test_adapters_and_quantised_weights_of_others(tmp_path):
    """PEFT's LoRA, prompt tuning and torchao's int8: see adapters.py."""
    environment = other_packages("adapters")
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
    result = subprocess.run(
        [sys.executable, ROOT / "tests/support/adapters.py", tmp_path], env=environment, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    result = json.loads(result.stdout.splitlines()[-1])
    for kind in ("weight only", "dynamic"):
        assert 0 < result[kind] < 0.1, result  # int8 is near the original, but not equal
    assert result["lora changes"] > 0.01 and result["lora merged"] < 1e-5 and result["lora reloaded"] < 1e-5, result
    assert result["lora trains"] == ["k", "q", "v"] and result["prompt"] < 1e-5 and result["prompt trains"], result
