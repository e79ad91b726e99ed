"""AMPLIFY: a pre-norm bidirectional Transformer encoder for proteins, with a masked-language-model head.

    tokens -> embedding -> [x + attention(norm(x)); x + SwiGLU(norm(x))] × layers -> norm -> decoder -> logits

RMSNorm, rotary positions on interleaved pairs, no dropout, no biases except in the decoder; embedding and decoder are
not tied. Parameters have the names of the published checkpoints (`chandar-lab/AMPLIFY_*`), without prefix, so
published weights load unchanged.

Training uses this class. The exported model, `AMPLIFY` in modeling_amplify.py, adds the arguments and outputs that
Hugging Face users expect.

Depends on torch only: this file is part of every exported model folder.
Shapes: T packed tokens, S segments, H hidden, M masked positions, V vocabulary; `…` stands for [B, L], [T] or [1, T].
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .attention import rotary_angles
from .elementwise import RMSNorm
from .inputs import arrange
from .layers import EncoderBlock


class EncoderOutput(NamedTuple):
    """logits: […, V], or [M, V] with `masked_positions`. last_hidden_state: […, H], after the final norm."""

    logits: torch.Tensor
    last_hidden_state: torch.Tensor


class Encoder(nn.Module):
    """config: a `Shape`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self._build(config)
        self.apply(self._init_weights)

    def _build(self, config):
        self.encoder = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.transformer_encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        self.layer_norm_2 = RMSNorm(config.hidden_size, config.norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.gradient_checkpointing = False

    def _init_weights(self, module):
        """Initialise as published: weights uniform in ±0.02 (also the padding row), biases zero, norms one."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -self.config.embedding_init_range, self.config.embedding_init_range)
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -self.config.decoder_init_range, self.config.decoder_init_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def forward(self, input_ids, position_ids=None, cu_seqlens=None, max_seqlen=None, masked_positions=None):
        """Return EncoderOutput for a packed batch, or for proteins of equal length.

        Packed: input_ids [T] or [1, T] with `cu_seqlens` [S + 1] and `max_seqlen` (see `Segments`). Without
        `cu_seqlens`: input_ids [B, L] without padding.

        position_ids: […] or [L]; by default from 0 in each protein. masked_positions [M]: compute logits only at these
        positions of the flattened tokens. Raises ValueError for arguments that contradict each other.
        """
        position_ids, segments, mask = arrange(
            input_ids.shape, input_ids.device, position_ids=position_ids, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen
        )
        rotation = rotary_angles(position_ids, self.config.head_size)
        x = self.encoder(input_ids)
        for block in self.transformer_encoder:
            x = self.run_block(block, x, rotation, segments, mask)
        return EncoderOutput(*self.head(x, masked_positions))

    def run_block(self, block, x, rotation, segments, mask, eager=False):
        """Call `block`, with activation checkpointing if it is enabled."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, x, rotation, segments, mask, eager, use_reentrant=False)
        return block(x, rotation, segments, mask, eager)

    def head(self, x, masked_positions=None):
        """Return (logits, last_hidden_state) for the output of the last block, […, H]."""
        x = self.layer_norm_2(x)
        return self.decoder(x if masked_positions is None else select_positions(x, masked_positions)), x


def select_positions(x, masked_positions):
    """Return x […, H] at positions [M] of its flattened tokens, [M, H]."""
    if masked_positions.dim() != 1 or masked_positions.dtype == torch.bool:
        raise ValueError(
            "masked_positions must be integers [M], positions in the flattened tokens, found "
            f"{masked_positions.dtype} {list(masked_positions.shape)}"
        )
    return x.flatten(0, -2)[masked_positions]
