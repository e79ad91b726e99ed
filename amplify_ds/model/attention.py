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


def packed_attention(query, key, value, cu_seqlens, max_seqlen):
    """Bidirectional softmax(q·k / √D)·v within each segment.

    query, key, value [T, N, D]; cu_seqlens int32 [S + 1], from 0 to T, empty segments allowed; max_seqlen the longest
    segment, an int. Returns [T, N, D]. Where a loop runs over segments, `cu_seqlens` is best kept on the CPU.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        cu_seqlens = cu_seqlens.to(query.device, torch.int32, non_blocking=True)
        if flash_attn_varlen_func is not None:
            return flash_attn_varlen_func(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and newer; not needed to load a model

        return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    ends = cu_seqlens.tolist()
    segments = [(begin, end) for begin, end in zip(ends, ends[1:]) if end > begin]
    if query.device.type == "cpu":
        return _SegmentedOnCPU.apply(query, key, value, segments)
    return torch.cat([_sdpa(query[a:b], key[a:b], value[a:b]) for a, b in segments])


def _sdpa(query, key, value):
    return F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (query, key, value)))[0].transpose(0, 1)


class _SegmentedOnCPU(torch.autograd.Function):
    """PyTorch's fused CPU kernel, once a segment, reading and writing slices of [T, N, D]."""

    @staticmethod
    def forward(ctx, query, key, value, segments):
        out = torch.empty_like(query)
        logsumexps = []
        for a, b in segments:
            part, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(_heads_first(x, a, b) for x in (query, key, value))
            )
            out[a:b] = part[0].transpose(0, 1)
            logsumexps.append(logsumexp)
        ctx.segments = segments
        ctx.save_for_backward(query, key, value, out, *logsumexps)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        query, key, value, out, *logsumexps = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        for (a, b), logsumexp in zip(ctx.segments, logsumexps):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(_heads_first(x, a, b) for x in (grad_out, query, key, value, out)), logsumexp, 0.0, False
            )
            for grad, part in zip(grads, parts):
                grad[a:b] = part[0].transpose(0, 1)
        return *grads, None


def _heads_first(x, begin, end):
    """A view [1, N, length, D] of one segment of [T, N, D]."""
    return x[begin:end].transpose(0, 1)[None]
