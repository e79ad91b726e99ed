"""AMPLIFY: a pre-norm bidirectional Transformer encoder for proteins, with a masked-language-model head.

    tokens -> embedding -> [x + attention(norm(x)); x + SwiGLU(norm(x))] × layers -> norm -> decoder -> logits

RMSNorm, rotary positions on interleaved pairs, no dropout, no biases except the decoder's; embedding and decoder are
not tied. Parameters carry the names of the published checkpoints (`chandar-lab/AMPLIFY_*`), without prefix, so one
class serves `AutoModel` and `AutoModelForMaskedLM`, and published weights load as they are.

The same forward takes two kinds of batch: padded ([B, L] with a mask, what Hugging Face users pass) and packed ([T]
with `cu_seqlens`, what the trainer passes: see attention.py). The file that trains is the file that is exported;
it depends on torch and transformers only.

Shapes: B batch, L padded length, T packed tokens, H hidden, N heads, D head size (H = N·D), F SwiGLU width,
M masked positions, V vocabulary; `…` stands for [B, L] or [T].
"""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .attention import Segments, attention, rotary_angles
from .configuration_amplify import AMPLIFYConfig
from .elementwise import rms_norm, swiglu


@dataclass
class AMPLIFYOutput(ModelOutput):
    """What AMPLIFY returns.

    loss: mean cross-entropy over labels other than -100, when labels are given. logits […, V], or [M, V] when
    `masked_positions` are given. last_hidden_state […, H]: after the final norm, what embeddings should be taken
    from. hidden_states, when asked for: the embedding output, then each layer's, before the final norm.
    """

    loss: Optional[torch.Tensor] = None
    logits: Optional[torch.Tensor] = None
    last_hidden_state: Optional[torch.Tensor] = None
    hidden_states: Optional[tuple] = None


class RMSNorm(nn.Module):
    """x / rms(x) · weight, the statistics in float32, cast back before the weight is applied."""

    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """w3(silu(gate) · up), where w12 holds gate and up one above the other."""

    def __init__(self, hidden_size, ffn_size):
        super().__init__()
        self.w12 = nn.Linear(hidden_size, 2 * ffn_size, bias=False)
        self.w3 = nn.Linear(ffn_size, hidden_size, bias=False)

    def forward(self, x):
        return self.w3(swiglu(self.w12(x)))


class EncoderBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.head_size = config.head_size
        self.q = nn.Linear(size, size, bias=False)
        self.k = nn.Linear(size, size, bias=False)
        self.v = nn.Linear(size, size, bias=False)
        self.wo = nn.Linear(size, size, bias=False)
        self.ffn = SwiGLU(size, config.ffn_size)
        self.attention_norm = RMSNorm(size, config.norm_eps)
        self.ffn_norm = RMSNorm(size, config.norm_eps)

    def forward(self, x, rotation, segments, mask):
        """x […, H]; rotation: see `rotary_angles`; `segments` of a packed batch, or `mask` of a padded one."""
        qkv = self.queries_keys_values(self.attention_norm(x)).unflatten(-1, (3, -1, self.head_size))
        x = x + self.wo(attention(qkv, rotation, segments, mask).flatten(-2))
        return x + self.ffn(self.ffn_norm(x))

    def queries_keys_values(self, x):
        """x […, H] -> […, 3H], in one product where nothing stands between these modules and their weights: no hook,
        such as ZeRO 3's and accelerate's that fetch a weight for the call, no adapter, no quantised layer. 8,192 tokens
        forward and backward on one CPU thread: 58 ms in place of 71 at width 192, 638 of 658 at 640, 1,367 of 1,484 at
        960; the block keeps the joined weights, 3·H² values, for backward.
        """
        projections = (self.q, self.k, self.v)
        if all(is_plain(f) for f in projections):
            return F.linear(x, torch.cat([f.weight for f in projections]))
        return torch.cat([f(x) for f in projections], -1)


def is_plain(module):
    """Calling this module is its matrix product and nothing else."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return type(module) is nn.Linear and not hooks and "forward" not in vars(module)


def attention_bias(mask):
    """Any usual attention mask -> boolean [B, 1 or L, 1 or L, L], True where a key may be seen.

    Accepts boolean, 0/1 (integer or float) and additive (0 to see, negative or -inf to hide) masks of shape [B, L],
    [B, L, L] or [B, 1, L, L]. A float mask without a positive entry is additive.
    """
    while mask.dim() < 4:
        mask = mask.unsqueeze(1)
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point():
        return torch.where(mask.amax(-1, keepdim=True) > 0, mask > 0, mask == 0)
    return mask != 0


class AMPLIFY(PreTrainedModel):
    config_class = AMPLIFYConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.encoder = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.transformer_encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        self.layer_norm_2 = RMSNorm(config.hidden_size, config.norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module):
        """Published initialisation: uniform in ±0.02 (the padding row too), biases zero, norms one."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -self.config.embedding_init_range, self.config.embedding_init_range)
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -self.config.decoder_init_range, self.config.decoder_init_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self):
        return self.encoder

    def set_input_embeddings(self, value):
        self.encoder = value

    def get_output_embeddings(self):
        return self.decoder

    def set_output_embeddings(self, value):
        self.decoder = value

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        labels=None,
        output_hidden_states=None,
        return_dict=None,
        cu_seqlens=None,
        max_seqlen=None,
        masked_positions=None,
        **kwargs,
    ):
        """input_ids [B, L] with `attention_mask` (see `attention_bias`), or packed [T] with `position_ids` [T],
        `cu_seqlens` [S + 1] and `max_seqlen` (see attention.py). `masked_positions` [M], packed batches only: logits
        and loss there alone. labels: […], or [M] with `masked_positions`; -100 is ignored. Returns AMPLIFYOutput.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[-1], device=input_ids.device)
        rotation = rotary_angles(position_ids, self.config.head_size)
        segments = None if cu_seqlens is None else Segments(cu_seqlens, max_seqlen)
        mask = None if attention_mask is None else attention_bias(attention_mask)

        x = self.encoder(input_ids)  # […, H]
        hidden_states = [x]
        for block in self.transformer_encoder:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotation, segments, mask, use_reentrant=False)
            else:
                x = block(x, rotation, segments, mask)
            if output_hidden_states:
                hidden_states.append(x)
        x = self.layer_norm_2(x)
        logits = self.decoder(x if masked_positions is None else x[masked_positions])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())
        output = AMPLIFYOutput(loss, logits, x, tuple(hidden_states) if output_hidden_states else None)
        return output if return_dict else output.to_tuple()
