"""Attention over many proteins laid end to end: each token sees its own protein only, and nothing is padded.

A packed batch is a row of T tokens and `cu_seqlens`, the S + 1 places where its S segments begin and the last one
ends. On a CUDA device in half precision one kernel does all segments: flash-attn where it can be imported, else
torch's own `varlen_attn`. Everywhere else a loop runs PyTorch's fused kernel once a segment; on the CPU it works in
place on slices of the packed tensors, so that nothing is concatenated on the way forward or split on the way back.

Depends on torch only: this file is part of every exported model folder.
Shapes: T tokens, S segments, N heads, D head size.
"""

import torch
import torch.nn.functional as F

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None


class Segments:
    """Where the proteins of a packed batch begin and end: made once a forward, used by every layer.

    cu_seqlens [S + 1] integers from 0 to T, best on the CPU; empty segments are allowed. max_seqlen: the longest
    segment, or a bound on it.
    """

    def __init__(self, cu_seqlens, max_seqlen):
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self._on_device = self._bounds = None

    def on_device(self, device):
        """cu_seqlens as the CUDA kernels want it: int32, on the device."""
        if self._on_device is None:
            self._on_device = self.cu_seqlens.to(device, torch.int32, non_blocking=True)
        return self._on_device

    def bounds(self):
        """(begin, end) of every segment that is not empty, for a loop on the host."""
        if self._bounds is None:
            ends = self.cu_seqlens.tolist()
            self._bounds = [(begin, end) for begin, end in zip(ends, ends[1:]) if end > begin]
        return self._bounds


@torch.compiler.disable  # segments differ from batch to batch, and their kernels are compiled already
def packed_attention(query, key, value, segments):
    """Bidirectional softmax(q·k / √D)·v within each segment. query, key, value [T, N, D]; returns [T, N, D]."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        ends, longest = segments.on_device(query.device), segments.max_seqlen
        if flash_attn_varlen_func is not None:
            return flash_attn_varlen_func(query, key, value, ends, ends, longest, longest)
        from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and newer; not needed to load a model

        return varlen_attn(query, key, value, ends, ends, longest, longest)
    if query.device.type == "cpu":
        return _SegmentedOnCPU.apply(query, key, value, segments.bounds())
    return torch.cat([_sdpa(query[a:b], key[a:b], value[a:b]) for a, b in segments.bounds()])


def _sdpa(query, key, value):
    return F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (query, key, value)))[0].transpose(0, 1)


class _SegmentedOnCPU(torch.autograd.Function):
    """PyTorch's fused CPU kernel, once a segment, reading and writing slices of [T, N, D]."""

    @staticmethod
    def forward(ctx, query, key, value, bounds):
        out = torch.empty_like(query)
        logsumexps = []
        for a, b in bounds:
            part, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(_heads_first(x, a, b) for x in (query, key, value))
            )
            out[a:b] = part[0].transpose(0, 1)
            logsumexps.append(logsumexp)
        ctx.bounds = bounds
        ctx.save_for_backward(query, key, value, out, *logsumexps)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        query, key, value, out, *logsumexps = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        for (a, b), logsumexp in zip(ctx.bounds, logsumexps):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(_heads_first(x, a, b) for x in (grad_out, query, key, value, out)), logsumexp, 0.0, False
            )
            for grad, part in zip(grads, parts):
                grad[a:b] = part[0].transpose(0, 1)
        return *grads, None


def _heads_first(x, begin, end):
    """A view [1, N, length, D] of one segment of [T, N, D]."""
    return x[begin:end].transpose(0, 1)[None]
