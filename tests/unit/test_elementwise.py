"""RMSNorm, SwiGLU and rotary attention, which define their own backward, against autograd of plain formulas."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amplify_ds.data.loader import collate
from amplify_ds.model import elementwise
from amplify_ds.model.attention import Segments, attention, rotary_angles
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.model.layers import EncoderBlock
from amplify_ds.model.modeling_amplify import AMPLIFY

SIZE, HEADS, EPS = 128, 2, 1e-5
LENGTHS = (37, 0, 130, 5, 1)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU test: no CUDA device here, not run")


def plain_norm(x, weight):
    return (x.float() / (x.float().square().mean(-1, keepdim=True) + EPS).sqrt()).to(x.dtype) * weight


def plain_swiglu(gate_up):
    half = gate_up.shape[-1] // 2
    return F.silu(gate_up[..., :half]) * gate_up[..., half:]


def plain_attention(qkv):
    """Return [T, N, D], computed for each segment alone, with rotation and softmax as plain formulas."""
    parts = []
    for part in qkv.split(LENGTHS):
        angle = torch.arange(len(part))[:, None, None] * 10_000.0 ** (-torch.arange(0, 64, 2) / 64)
        q, k, v = part.unbind(1)
        q, k = (
            torch.stack(
                (
                    z[..., ::2] * angle.cos() - z[..., 1::2] * angle.sin(),
                    z[..., ::2] * angle.sin() + z[..., 1::2] * angle.cos(),
                ),
                -1,
            )
            .flatten(-2)
            .to(qkv.dtype)
            for z in (q, k)
        )
        parts.append(torch.einsum("hqk,khd->qhd", (torch.einsum("qhd,khd->hqk", q, k) / 8).softmax(-1), v))
    return torch.cat(parts)


def packed_attention(qkv):
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    position_ids = torch.cat([torch.arange(n) for n in LENGTHS])
    return attention(qkv, rotary_angles(position_ids.to(qkv.device), 64), Segments(ends, max(LENGTHS)))


def gradients(function, inputs, grad):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def custom_norm(x, weight):
    return elementwise.rms_norm(x, weight, EPS)


CASES = {
    "rms_norm": (custom_norm, plain_norm, [(sum(LENGTHS), SIZE), (SIZE,)], (sum(LENGTHS), SIZE)),
    "swiglu": (elementwise.swiglu, plain_swiglu, [(3, 50, 2 * SIZE)], (3, 50, SIZE)),
    "attention": (packed_attention, plain_attention, [(sum(LENGTHS), 3, HEADS, 64)], (sum(LENGTHS), HEADS, 64)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1, 2**17])  # row by row, and all rows in one block
def test_values_and_gradients_are_those_of_the_plain_formula(name, block, monkeypatch):
    monkeypatch.setattr(elementwise, "BLOCK", block)
    custom, plain, shapes, shape = CASES[name]
    torch.manual_seed(0)
    inputs, grad = [torch.randn(s) for s in shapes], torch.randn(shape)
    for actual, expected in zip(gradients(custom, inputs, grad), gradients(plain, inputs, grad)):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_accurate_as_autograd(name):
    """The distance to float32 is at most 1.2 times that of autograd in bfloat16."""
    custom, plain, shapes, shape = CASES[name]
    torch.manual_seed(0)
    inputs, grad = [torch.randn(s).bfloat16() for s in shapes], torch.randn(shape).bfloat16()
    exact = gradients(plain, [x.float() for x in inputs], grad)
    for expected, actual, autograd in zip(exact, gradients(custom, inputs, grad), gradients(plain, inputs, grad)):
        assert actual.dtype == torch.bfloat16
        assert (actual - expected).norm() < 1.2 * (autograd - expected).norm()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_on_a_gpu(name, dtype, limit):
    custom, plain, shapes, shape = CASES[name]
    torch.manual_seed(0)
    inputs, grad = [torch.randn(s).to(dtype) for s in shapes], torch.randn(shape).to(dtype)
    exact = gradients(plain, [x.float() for x in inputs], grad)
    for expected, actual in zip(exact, gradients(custom, [x.cuda() for x in inputs], grad.cuda())):
        assert (actual.float().cpu() - expected).norm() < limit * expected.norm()


@pytest.mark.gpu
@needs_gpu
def test_all_tensors_of_a_batch_are_pinned():
    tokens = np.full(64, 7, np.uint8)
    batch = collate([(tokens, np.array([40, 24]))], [(tokens, np.array([1, 2]), np.array([7, 7]))], 64).pin_memory()
    tensors = [x for x in vars(batch).values() if torch.is_tensor(x)]
    assert len(tensors) == 5 and all(x.is_pinned() for x in tensors)


@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
def test_gradients_are_those_of_finite_differences(name):
    custom, _, shapes, _ = CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(*(min(n, 6) for n in s), dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(custom, inputs)


def block_and_input(dtype=torch.float32):
    torch.manual_seed(0)
    config = AMPLIFYConfig(hidden_size=SIZE, num_attention_heads=HEADS, intermediate_size=4 * SIZE)
    block = EncoderBlock(config).to(dtype)
    ends, position_ids = torch.tensor([0, *LENGTHS]).cumsum(0), torch.cat([torch.arange(n) for n in LENGTHS])
    x = torch.randn(sum(LENGTHS), SIZE, dtype=dtype, requires_grad=True)
    return block, config, (x, rotary_angles(position_ids, 64), Segments(ends, max(LENGTHS)), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_that_a_block_keeps_for_backward(dtype):
    """derived.memory_per_device assumes 8·H + 3·F values per token."""
    block, config, inputs = block_and_input(dtype)
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        block(*inputs)
    for parameter in block.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    tokens, wide = sum(LENGTHS), torch.finfo(dtype).bits // 8
    counted = tokens * wide * (8 * SIZE + 3 * config.ffn_size)
    small = 3 * SIZE**2 * wide + 4 * tokens * (64 + HEADS + 2) + 4 * 16  # concatenated weights, angles, statistics
    assert counted <= sum(kept.values()) <= counted + small


@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
def test_transforms_of_torch_func(name):
    """Per-sample gradients, forward mode and second derivatives against those of the plain formula."""
    from torch.func import grad, hessian, jvp, vmap

    custom, plain, shapes, _ = CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(*(min(n, 6) for n in s), dtype=torch.float64) for s in shapes]
    if name == "rms_norm":

        def plain(x, weight):
            return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    argnums = tuple(range(len(inputs)))

    def loss(function):
        return lambda *arguments: function(*arguments).sin().sum()

    in_dims = (0, *[None] * (len(inputs) - 1))
    for transformed in (
        lambda f: grad(loss(f), argnums=argnums)(*inputs),
        lambda f: vmap(grad(loss(f), argnums=argnums), in_dims=in_dims)(*inputs),
        lambda f: jvp(f, tuple(inputs), tuple(x.cos() for x in inputs)),
        lambda f: hessian(loss(f))(*inputs),
    ):
        torch.testing.assert_close(transformed(custom), transformed(plain))


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_each_protein_of_a_batch_by_torch_func(packed):
    from torch.func import functional_call, grad, vmap

    torch.manual_seed(0)
    shape = dict(hidden_size=SIZE, num_attention_heads=HEADS, intermediate_size=SIZE, num_hidden_layers=2)
    model = AMPLIFY(AMPLIFYConfig(**shape))
    ids = torch.randint(5, 26, (3, 20))
    more = {"cu_seqlens": torch.tensor([0, 8, 20])} if packed else {}
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, row):
        row = row if packed else row[None]
        return functional_call(model, weights, (row,), {"labels": row, **more}).loss

    gradients = vmap(grad(loss), in_dims=(None, 0))(weights, ids)
    for i, row in enumerate(ids):
        row = row if packed else row[None]
        expected = torch.autograd.grad(model(row, labels=row, **more).loss, list(model.parameters()))
        for (name, per_protein), gradient in zip(gradients.items(), expected):
            torch.testing.assert_close(
                per_protein[i], gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
