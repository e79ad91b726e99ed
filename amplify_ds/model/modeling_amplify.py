"""AMPLIFY for transformers: the model of encoder.py, with the arguments and outputs that Hugging Face users expect.

One class serves `AutoModel` and `AutoModelForMaskedLM`. Its forward takes padded batches ([B, L] with a mask) and
packed ones ([T] with `cu_seqlens`, as in training; see attention.py). It depends on torch and transformers only.

Shapes: B batch, L padded length, T packed tokens, H hidden, N heads, D head size (H = N·D), F SwiGLU width,
M masked positions, V vocabulary; `…` stands for [B, L], [T] or [1, T].
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

# transformers before 5 copies the files that are imported here, but not those that they import: import them all.
from .attention import rotary_angles
from .configuration_amplify import AMPLIFYConfig
from .elementwise import RMSNorm  # noqa: F401
from .encoder import Encoder
from .inputs import arrange
from .layers import EncoderBlock  # noqa: F401
from .loss import accepts_loss_kwargs, masked_lm_loss
from .shape import Shape  # noqa: F401


@dataclass
class AMPLIFYOutput(ModelOutput):
    """The output of AMPLIFY.

    loss: cross-entropy over labels other than -100, if labels are given (see `masked_lm_loss`). logits: […, V], or
    [M, V] with `masked_positions`. last_hidden_state: […, H], after the final norm; use it for embeddings.
    hidden_states, on request: the output of the embedding and of each layer, before the final norm. attentions, on
    request: the probabilities [B, N, L, L] of each layer (see `eager_attention`).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


class AMPLIFY(Encoder, PreTrainedModel):
    config_class = AMPLIFYConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]
    _supports_sdpa = True

    def __init__(self, config):
        PreTrainedModel.__init__(self, config)
        self._build(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder

    def set_input_embeddings(self, value):
        self.encoder = value

    def get_output_embeddings(self):
        return self.decoder

    def set_output_embeddings(self, value):
        self.decoder = value

    @property
    def accepts_loss_kwargs(self):
        """Tell Trainer that the loss can be divided by `num_items_in_batch`."""
        return accepts_loss_kwargs(self)

    def forward(  # type: ignore[override]  # arguments in the order of transformers, not of Encoder
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        output_hidden_states=None,
        return_dict=None,
        cu_seqlens=None,
        max_seqlen=None,
        masked_positions=None,
        inputs_embeds=None,
        output_attentions=None,
        num_items_in_batch=None,
        pad_mask=None,
        cu_seq_lens_q=None,
        cu_seq_lens_k=None,
        max_length_q=None,
        max_length_k=None,
    ):
        """Return AMPLIFYOutput, or a tuple if `return_dict` is false.

        Padded: input_ids [B, L] with `attention_mask` (see `attention_bias`), or the additive `pad_mask` of the
        official code. Packed: input_ids [T] or [1, T] with `cu_seqlens` [S + 1] and `max_seqlen` (see `Segments`), or
        with the names of Hugging Face's collator, `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`.

        position_ids: […] or [L]; by default from 0 in each protein. Without cu_seqlens, a position that is not greater
        than the one before it starts a new protein. inputs_embeds […, H]: instead of input_ids. masked_positions [M]:
        compute logits and loss only at these positions of the flattened tokens. labels: […], or [M] with
        `masked_positions`; -100 is ignored. num_items_in_batch: see `masked_lm_loss`. output_attentions: for padded
        batches only; does not use a fused kernel.

        Raises ValueError for arguments that contradict each other.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if return_dict is None:
            return_dict = self.config.return_dict
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        position_ids, segments, mask = arrange(
            tokens.shape,
            tokens.device,
            attention_mask,
            pad_mask,
            position_ids,
            cu_seqlens,
            max_seqlen,
            cu_seq_lens_q,
            cu_seq_lens_k,
            max_length_q,
            max_length_k,
        )
        rotation = rotary_angles(position_ids, self.config.head_size)
        eager = self._is_eager(output_attentions, segments)

        x = self.encoder(input_ids) if inputs_embeds is None else inputs_embeds  # […, H]
        hidden_states, attentions = [x], []
        for block in self.transformer_encoder:
            x = self.run_block(block, x, rotation, segments, mask, eager)
            if eager:
                x, probabilities = x
            if output_attentions:
                attentions.append(probabilities)
            if output_hidden_states:
                hidden_states.append(x)
        logits, x = self.head(x, masked_positions)
        output = AMPLIFYOutput(
            None if labels is None else masked_lm_loss(logits, labels, num_items_in_batch),
            logits,
            x,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _is_eager(self, output_attentions, segments):
        """Return whether to compute attention without a fused kernel. Raises ValueError for unsupported options."""
        implementation = self.config._attn_implementation
        if implementation not in ("sdpa", "eager"):
            raise ValueError(f'AMPLIFY supports attn_implementation "sdpa" and "eager", found {implementation!r}')
        if output_attentions and segments is not None:
            raise ValueError("output_attentions is not supported for packed batches; pass a padded batch, [B, L]")
        return output_attentions or implementation == "eager"
