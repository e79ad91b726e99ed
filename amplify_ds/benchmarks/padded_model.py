"""AMPLIFY in plain PyTorch as the published code trains it: padded batches, a dense mask, no attention kernel.

Written from the published description only, to be read rather than to be fast. The benchmarks (contestants.py) and the
tests compare the training path with it, so it must not import or share code with amplify_ds. Its `state_dict()` has
exactly the keys of the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

HEAD_SIZE = 64
ROPE_BASE = 10_000.0
INIT_RANGE = 0.02


def swiglu_width(intermediate_size: int) -> int:
    """Return the width of SwiGLU: two thirds of the configured size, rounded up to a multiple of 8."""
    return (int(2 * intermediate_size / 3) + 7) // 8 * 8


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding to x [batch, heads, length, HEAD_SIZE].

    Rotates each pair (x[2i], x[2i+1]) at position p by the angle p * ROPE_BASE ** (-2i / HEAD_SIZE).
    """
    position = torch.arange(x.shape[-2], dtype=torch.float32, device=x.device)
    pair = torch.arange(0, HEAD_SIZE, 2, dtype=torch.float32, device=x.device)
    angle = position[:, None] * ROPE_BASE ** (-pair / HEAD_SIZE)[None, :]
    even, odd = x.float()[..., 0::2], x.float()[..., 1::2]
    rotated = torch.empty_like(x, dtype=torch.float32)
    rotated[..., 0::2] = even * angle.cos() - odd * angle.sin()
    rotated[..., 1::2] = even * angle.sin() + odd * angle.cos()
    return rotated.to(x.dtype)


class RMSNorm(nn.Module):
    """Return x / rms(x), computed in float32 and cast back, times the weight."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean_square = x.float().pow(2).mean(dim=-1, keepdim=True)
        return (x.float() / torch.sqrt(mean_square + self.eps)).to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    def __init__(self, hidden_size: int, width: int):
        super().__init__()
        self.w12 = nn.Linear(hidden_size, 2 * width, bias=False)
        self.w3 = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, hidden_size: int, num_attention_heads: int, intermediate_size: int, norm_eps: float):
        super().__init__()
        self.num_heads = num_attention_heads
        self.q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.wo = nn.Linear(hidden_size, hidden_size, bias=False)
        self.ffn = SwiGLU(hidden_size, swiglu_width(intermediate_size))
        self.attention_norm = RMSNorm(hidden_size, norm_eps)
        self.ffn_norm = RMSNorm(hidden_size, norm_eps)

    def attention(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:  # [batch, length, hidden] -> [batch, heads, length, HEAD_SIZE]
            return y.unflatten(-1, (self.num_heads, HEAD_SIZE)).transpose(1, 2)

        q, k, v = rotate(heads(self.q(x))), rotate(heads(self.k(x))), heads(self.v(x))
        weight = torch.softmax(q @ k.transpose(-1, -2) / HEAD_SIZE**0.5 + mask, dim=-1)
        return self.wo((weight @ v).transpose(1, 2).flatten(-2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.ffn(self.ffn_norm(x))


class ReferenceAMPLIFY(nn.Module):
    def __init__(
        self,
        vocab_size: int = 27,
        hidden_size: int = 640,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 10,
        intermediate_size: int = 2560,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if hidden_size != num_attention_heads * HEAD_SIZE:
            raise ValueError(
                f"hidden_size is {hidden_size}, expected {num_attention_heads * HEAD_SIZE}: "
                f"{num_attention_heads} heads of size {HEAD_SIZE}"
            )
        self.encoder = nn.Embedding(vocab_size, hidden_size, padding_idx=0)
        self.transformer_encoder = nn.ModuleList(
            Block(hidden_size, num_attention_heads, intermediate_size, norm_eps) for _ in range(num_hidden_layers)
        )
        self.layer_norm_2 = RMSNorm(hidden_size, norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.uniform_(module.weight, -INIT_RANGE, INIT_RANGE)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [batch, length, vocab]; attention_mask is True at tokens and False at padding."""
        x = self.encoder(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        mask = torch.zeros(attention_mask.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(~attention_mask, float("-inf"))[:, None, None, :]
        for block in self.transformer_encoder:
            x = block(x, mask)
        return self.decoder(self.layer_norm_2(x))
