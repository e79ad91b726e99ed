"""Attention over concatenated proteins without padding: each token attends to its own protein only.

A packed batch has T tokens and `cu_seqlens`, the S + 1 boundaries of its S segments. On a CUDA device in half
precision, one kernel computes all segments: flash-attn if it can be imported, otherwise torch's `varlen_attn`. In all
other cases, a loop calls PyTorch's fused kernel once per segment; on the CPU it works on slices of the packed tensors,
so nothing is concatenated in the forward pass or split in the backward pass.

Measured on one CPU thread in float32, 10 heads of 64, 290 tokens: that kernel reaches 76 GFLOP/s forward and 66
backward; two matrix products with a softmax between them, 67 and 55; the projections of a block, 90 to 100.

Depends on torch only: this file is part of every exported model folder.
Shapes: T tokens, S segments, N heads, D head size.
"""

import functools

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .elementwise import transforming

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

ROPE_BASE = 10_000.0


def not_compiled(function):
    """Return `function`, excluded from torch.compile.

    torch.compiler.disable would do the same, but it imports the compiler at once, which takes two seconds of processor
    time. This is what torch's optimizers use.
    """
    disabled = torch._disable_dynamo(function)

    @functools.wraps(function)
    def call(*args):
        return disabled(*args) if torch.compiler.is_compiling() else function(*args)

    return call


class Segments:
    """The boundaries of the proteins in a packed batch, made once per forward pass and used by every layer.

    cu_seqlens [S + 1]: integers from 0 to T, on the CPU (otherwise the host waits for the device); segments may be
    empty. max_seqlen: the length of the longest segment or an upper bound; None: computed.
    """

    def __init__(self, cu_seqlens, max_seqlen=None):
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self._on_device = self._ends = None

    @not_compiled  # depends on values
    def check(self, tokens):
        """Return self. Raises ValueError unless the segments cover `tokens` tokens."""
        ends = self.ends() if self.cu_seqlens.dim() == 1 else []
        lengths = [b - a for a, b in zip(ends, ends[1:])]
        if not lengths or ends[0] != 0 or ends[-1] != tokens or min(lengths) < 0:
            shown = ", ".join(map(str, ends[:8])) + (", …" if len(ends) > 8 else "")
            raise ValueError(
                f"cu_seqlens must have one axis and go from 0 to the number of tokens, {tokens}, without decreasing; "
                f"found shape {list(self.cu_seqlens.shape)}: {shown}"
            )
        longest = max(lengths)
        if self.max_seqlen is None:
            self.max_seqlen = longest
        elif self.max_seqlen < longest:
            raise ValueError(f"max_seqlen is {self.max_seqlen}, but a segment of cu_seqlens has {longest} tokens")
        return self

    def on_device(self, device):
        """Return cu_seqlens for the CUDA kernels: int32, on the device."""
        if self._on_device is None:
            self._on_device = self.cu_seqlens.to(device, torch.int32, non_blocking=True)
        return self._on_device

    def ends(self):
        """Return cu_seqlens as a list."""
        if self._ends is None:
            self._ends = self.cu_seqlens.tolist()
        return self._ends

    def bounds(self):
        """Return (begin, end) of every segment that is not empty."""
        ends = self.ends()
        return [(begin, end) for begin, end in zip(ends, ends[1:]) if end > begin]

    def positions(self, device):
        """Return the position of each token in its segment, [T]."""
        ends = torch.tensor(self.ends())
        starts = torch.repeat_interleave(ends[:-1], ends.diff())
        return (torch.arange(len(starts)) - starts).to(device)


def attention(qkv, rotation, segments=None, mask=None):
    """Return bidirectional softmax(q·k / √D)·v with rotary positions, within each segment or under a mask.

    qkv […, 3, N, D]: queries, keys and values before rotation. rotation: see `rotary_angles`. With `segments`, … is
    [T] or [1, T]; without, it is [B, L] or [L]. mask: boolean, broadcasts to [B, N, L, L], True where a key is visible;
    or None. Returns […, N, D].
    """
    if segments is not None and qkv.dim() == 5:
        return attention(qkv.squeeze(0), rotation.squeeze(0), segments).unsqueeze(0)
    if segments is not None and qkv.device.type == "cpu" and not transforming():
        return _on_cpu(qkv, rotation, segments)
    query, key, value = qkv.unbind(-3)
    query, key = rotate(query, rotation), rotate(key, rotation)
    if segments is not None:
        return _on_device(query, key, value, segments)
    return _sdpa(query, key, value, mask)


def eager_attention(qkv, rotation, segments=None, mask=None):
    """Compute the same as `attention` without a fused kernel, with a softmax in float32; also return probabilities.

    Arguments as for `attention`. Returns […, N, D] and the probabilities [B, N, L, L] ([N, L, L] if … is [L]) with
    which each token (rows) attends to each other (columns), zero where the mask is False; None for a packed batch.
    """
    if segments is not None and qkv.dim() == 5:
        return eager_attention(qkv.squeeze(0), rotation.squeeze(0), segments)[0].unsqueeze(0), None
    if segments is not None:
        parts = [eager_attention(qkv[a:b], rotation[a:b])[0] for a, b in segments.bounds()]
        return torch.cat(parts), None
    query, key, value = qkv.unbind(-3)
    query, key, value = (x.transpose(-2, -3) for x in (rotate(query, rotation), rotate(key, rotation), value))
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:  # also in rows that are masked completely
        probabilities = probabilities.masked_fill(~mask, 0.0)
    probabilities = probabilities.to(value.dtype)
    return (probabilities @ value).transpose(-2, -3), probabilities


def rotary_angles(position_ids, head_size):
    """Return the rotations […, 1, D/2, 2] as (cos, sin): pair i of a head is rotated by position · base^(-2i/D)
    (Su et al. 2021, RoFormer).

    Computed in float32 in each forward pass: the cost is negligible, and there is no buffer that could be lost when a
    model is built on the meta device or cast to half precision.
    """
    pair = torch.arange(0, head_size, 2, dtype=torch.float32, device=position_ids.device)
    angles = position_ids[..., None].float() * ROPE_BASE ** (-pair / head_size)
    return torch.stack((angles.cos(), angles.sin()), -1).unsqueeze(-3)


def rotate(x, rotation):
    """Return x […, N, D] with the pairs (2i, 2i + 1) rotated in float32.

    On a CPU, the complex product is 10 times faster than arithmetic on slices; torch.compile does not support complex
    numbers, but fuses the slices into one kernel.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return rotated.flatten(-2).to(x.dtype)


def _sdpa(query, key, value, mask=None):
    """query, key, value [B, L, N, D] -> [B, L, N, D]."""
    query, key, value = (x.transpose(-2, -3) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(-2, -3)


@not_compiled  # segments differ between batches, and the kernels are already compiled
def _on_device(query, key, value, segments):
    """query, key, value [T, N, D] -> [T, N, D]."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        ends, longest = segments.on_device(query.device), segments.max_seqlen
        if flash_attn_varlen_func is not None:
            return flash_attn_varlen_func(query, key, value, ends, ends, longest, longest)
        from torch.nn.attention.varlen import varlen_attn  # needs torch 2.10, loading a model does not

        return varlen_attn(query, key, value, ends, ends, longest, longest)
    return torch.cat([_sdpa(*(x[None, a:b] for x in (query, key, value)))[0] for a, b in segments.bounds()])


@not_compiled
def _on_cpu(qkv, rotation, segments):
    return _SegmentedOnCPU.apply(qkv, rotation, segments.bounds())


class _SegmentedOnCPU(torch.autograd.Function):
    """PyTorch's fused CPU kernel, called once per segment, on slices of [T, 3, N, D].

    Queries and keys are rotated segment by segment, in forward and again in backward, while they are in the cache.
    """

    @staticmethod
    def forward(ctx, qkv, rotation, bounds):
        out = torch.empty_like(qkv[:, 0], memory_format=torch.contiguous_format)
        logsumexps = []
        for a, b in bounds:
            part, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *_segment(qkv[a:b], rotation[a:b])
            )
            out[a:b] = part[0].transpose(0, 1)
            logsumexps.append(logsumexp)
        ctx.bounds = bounds
        ctx.save_for_backward(qkv, rotation, out, *logsumexps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        qkv, rotation, out, *logsumexps = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        inverse = rotation * rotation.new_tensor([1.0, -1.0])
        for (a, b), logsumexp in zip(ctx.bounds, logsumexps):
            *grad_rotated, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _heads_first(grad_out[a:b]),
                *_segment(qkv[a:b], rotation[a:b]),
                _heads_first(out[a:b]),
                logsumexp,
                0.0,
                False,
            )
            for i, grad in enumerate(grad_rotated):  # of queries and keys
                grad_qkv[a:b, i] = rotate(grad[0].transpose(0, 1), inverse[a:b])
            grad_qkv[a:b, 2] = grad_value[0].transpose(0, 1)
        return grad_qkv, None, None


def _segment(qkv, rotation):
    """Return rotated queries, rotated keys and values [1, N, L, D] of one segment [L, 3, N, D]."""
    query, key = rotate(qkv[:, :2], rotation[:, None]).unbind(1)
    return _heads_first(query), _heads_first(key), _heads_first(qkv[:, 2])


def _heads_first(x):
    """[L, N, D] -> a view [1, N, L, D]."""
    return x.transpose(0, 1)[None]
