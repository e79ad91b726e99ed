"""The layouts of AMPLIFY's weights: one table per layout, used for import and export.

A rule maps one tensor of a layout to the published tensors that it contains (those of chandar-lab/AMPLIFY_*), and can
`join` and `split` them. Export applies `join`, import applies `split`, so one is the exact inverse of the other. The
table of `hf` is the identity.

- `te`: NVIDIA's TransformerEngine model (bionemo-recipes, models/amplify, state_dict_convert.py). q, k and v are one
  matrix, interleaved by head: the rows of q, k and v of head 0, then those of head 1, and so on. The vocabulary is
  padded from 27 to 32 rows with zeros, and in the decoder's bias with the lowest finite number, so that padding tokens
  are never predicted.
- `megatron`: the Megatron-Core model of NVIDIA's NeMo port (bionemo-framework before December 2025,
  bionemo-amplify, convert.py): interleaved by head as well, all padding zero.
- `megatron-local`: the same for Megatron-Core without TransformerEngine, where norms are separate modules.

Shapes: V vocabulary, H hidden, N heads, D head size, F SwiGLU width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from amplify_ds.vocab import TOKENS

PADDED_VOCABULARY = 32


@dataclass(frozen=True)
class Same:
    """A tensor with another name. In names, `{}` stands for the number of the layer."""

    name: str  # in the layout
    published: tuple[str, ...]  # names of the published tensors that it contains

    def join(self, parts: list[torch.Tensor], heads: int) -> torch.Tensor:
        return parts[0]

    def split(self, whole: torch.Tensor, heads: int) -> list[torch.Tensor]:
        return [whole]


class ByHead(Same):
    """q, k, v [H, H] each <-> [3H, H] in the order (head; q, k or v; row of the head)."""

    def join(self, parts, heads):
        return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)

    def split(self, whole, heads):
        parts = whole.unflatten(0, (heads, len(self.published), -1)).unbind(1)
        return [part.flatten(0, 1).contiguous() for part in parts]


@dataclass(frozen=True)
class Padded(Same):
    """[27, …] <-> [32, …]; the padding is zero, or with `lowest` the lowest finite number of the type."""

    lowest: bool = False

    def join(self, parts, heads):
        part = parts[0]
        value = torch.finfo(part.dtype).min if self.lowest else 0.0
        return torch.cat([part, part.new_full((PADDED_VOCABULARY - len(part), *part.shape[1:]), value)])

    def split(self, whole, heads):
        return [whole[: len(TOKENS)].contiguous()]


@dataclass(frozen=True)
class Layout:
    """A name and its rules. `ignored`: pattern of the names of entries that are not weights."""

    name: str
    rules: tuple[Same, ...]
    padded: bool = True
    ignored: str = r".*(_extra_state|inv_freq)"

    def keys(self, layers: int) -> dict[str, tuple[Same, list[str]]]:
        """Return {name in this layout: (rule, published names)} of a model with this number of layers."""
        return {
            rule.name.format(i): (rule, [name.format(i) for name in rule.published])
            for rule in self.rules
            for i in (range(layers) if "{}" in rule.name else (0,))
        }

    def name_of(self, published: str) -> str:
        """Return the name in this layout of a published tensor; in both names, {} stands for the layer."""
        return next(rule.name for rule in self.rules if published in rule.published)

    def matches(self, keys: Iterable[str]) -> int:
        """Return how many of the keys are names of this layout."""
        patterns = [re.escape(rule.name).replace(r"\{\}", r"\d+") for rule in self.rules]
        return sum(re.fullmatch("|".join(patterns), key) is not None for key in keys)

    def layers(self, keys: Iterable[str]) -> int:
        """Return the number of layers, from the highest number in the keys."""
        pattern = re.escape(self.name_of(f"{BLOCK}wo.weight")).replace(r"\{\}", r"(\d+)")
        return 1 + max((int(match[1]) for key in keys if (match := re.fullmatch(pattern, key))), default=-1)


BLOCK = "transformer_encoder.{}."
_QKV = tuple(f"{BLOCK}{x}.weight" for x in "qkv")


def _fused(name: str, block: str, names: str, embedding: str, decoder: str, lowest: bool, final_norm: str) -> Layout:
    """Return a layout with q, k and v in one matrix and a padded vocabulary.

    names: of qkv, its norm, wo, the norm of the feed-forward layer, w12 and w3.
    """
    qkv, norm, wo, ffn_norm, w12, w3 = (block + x for x in names.split())
    return Layout(
        name,
        (
            Padded(embedding, ("encoder.weight",)),
            ByHead(qkv, _QKV),
            Same(norm, (f"{BLOCK}attention_norm.weight",)),
            Same(wo, (f"{BLOCK}wo.weight",)),
            Same(ffn_norm, (f"{BLOCK}ffn_norm.weight",)),
            Same(w12, (f"{BLOCK}ffn.w12.weight",)),
            Same(w3, (f"{BLOCK}ffn.w3.weight",)),
            Same(final_norm, ("layer_norm_2.weight",)),
            Padded(f"{decoder}.weight", ("decoder.weight",)),
            Padded(f"{decoder}.bias", ("decoder.bias",), lowest),
        ),
    )


PUBLISHED_NAMES = (
    "encoder.weight",
    *_QKV,
    *(f"{BLOCK}{x}.weight" for x in ("wo", "ffn.w12", "ffn.w3", "attention_norm", "ffn_norm")),
    "layer_norm_2.weight",
    "decoder.weight",
    "decoder.bias",
)
# Embedding, decoder, whether the bias of padding is the lowest number, final norm.
_TE = ("amplify.encoder.weight", "decoder", True, "decoder.layer_norm_weight")
_MEGATRON = ("embedding.word_embeddings.weight", "output_layer", False, "encoder.final_layernorm.weight")

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("hf", tuple(Same(name, (name,)) for name in PUBLISHED_NAMES), padded=False),
        _fused(
            "te",
            "amplify.transformer_encoder.{}.",
            "self_attention.layernorm_qkv.weight self_attention.layernorm_qkv.layer_norm_weight "
            "self_attention.proj.weight "
            "layernorm_mlp.layer_norm_weight layernorm_mlp.fc1_weight layernorm_mlp.fc2_weight",
            *_TE,
        ),
        _fused(
            "megatron",
            "encoder.layers.{}.",
            "self_attention.linear_qkv.weight self_attention.linear_qkv.layer_norm_weight "
            "self_attention.linear_proj.weight "
            "mlp.linear_fc1.layer_norm_weight mlp.linear_fc1.weight mlp.linear_fc2.weight",
            *_MEGATRON,
        ),
        _fused(
            "megatron-local",
            "encoder.layers.{}.",
            "self_attention.linear_qkv.weight input_layernorm.weight self_attention.linear_proj.weight "
            "pre_mlp_layernorm.weight mlp.linear_fc1.weight mlp.linear_fc2.weight",
            *_MEGATRON,
        ),
    )
}
