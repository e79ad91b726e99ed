"""The layouts of AMPLIFY's weights, as data: one table a layout, read in both directions.

A rule pairs one tensor of a layout with the tensors of ours that it holds, and knows how to join and to split them.
Import walks the table with `split`, export with `join`, so that what one does the other undoes, bit for bit. Our own
names are the published ones (chandar-lab/AMPLIFY_*), so the table of `hf` is the identity.

- `te`: NVIDIA's TransformerEngine model (bionemo-recipes, models/amplify, state_dict_convert.py). q, k and v are one
  matrix, interleaved by head: the rows of head 0's q, its k, its v, then head 1's. The vocabulary is padded from 27 to
  32 rows: zeros, and the lowest finite number in the decoder's bias, so that no padding token is ever predicted.
- `megatron`: the Megatron-Core model of NVIDIA's NeMo port (bionemo-framework before December 2025,
  bionemo-amplify, convert.py): interleaved by head as well, the padding zero throughout.
- `megatron-local`: the same where Megatron-Core runs without TransformerEngine: its norms are modules of their own.

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
    """One tensor under another name. `{}` in a name stands for the number of the layer."""

    theirs: str
    ours: tuple[str, ...]

    def join(self, parts: list[torch.Tensor], heads: int) -> torch.Tensor:
        return parts[0]

    def split(self, whole: torch.Tensor, heads: int) -> list[torch.Tensor]:
        return [whole]


class ByHead(Same):
    """q, k, v [H, H] each <-> [3H, H] in the order (head, which of the three, row of the head)."""

    def join(self, parts, heads):
        return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)

    def split(self, whole, heads):
        return [part.flatten(0, 1).contiguous() for part in whole.unflatten(0, (heads, len(self.ours), -1)).unbind(1)]


@dataclass(frozen=True)
class Padded(Same):
    """[27, …] <-> [32, …]; the further rows are zero, or with `lowest` the lowest finite number of their type."""

    lowest: bool = False

    def join(self, parts, heads):
        part = parts[0]
        value = torch.finfo(part.dtype).min if self.lowest else 0.0
        return torch.cat([part, part.new_full((PADDED_VOCABULARY - len(part), *part.shape[1:]), value)])

    def split(self, whole, heads):
        return [whole[: len(TOKENS)].contiguous()]


@dataclass(frozen=True)
class Layout:
    """A name and its rules. `ignored`: what may stand beside the weights and is none."""

    name: str
    rules: tuple[Same, ...]
    padded: bool = True
    ignored: str = r".*(_extra_state|inv_freq)"

    def keys(self, layers: int) -> dict[str, tuple[Same, list[str]]]:
        """{their name: (rule, our names)} of a model with so many layers."""
        return {
            rule.theirs.format(i): (rule, [name.format(i) for name in rule.ours])
            for rule in self.rules
            for i in (range(layers) if "{}" in rule.theirs else (0,))
        }

    def theirs(self, ours: str) -> str:
        """Their name of our tensor, with {} where the layer's number goes."""
        return next(rule.theirs for rule in self.rules if ours in rule.ours)

    def matches(self, keys: Iterable[str]) -> int:
        """How many of the keys are names of this layout."""
        patterns = [re.escape(rule.theirs).replace(r"\{\}", r"\d+") for rule in self.rules]
        return sum(re.fullmatch("|".join(patterns), key) is not None for key in keys)

    def layers(self, keys: Iterable[str]) -> int:
        """The number of layers, by the highest number among the keys."""
        pattern = re.escape(self.theirs(f"{BLOCK}wo.weight")).replace(r"\{\}", r"(\d+)")
        return 1 + max((int(found[1]) for key in keys if (found := re.fullmatch(pattern, key))), default=-1)


BLOCK = "transformer_encoder.{}."
_QKV = tuple(f"{BLOCK}{x}.weight" for x in "qkv")


def _fused(name: str, block: str, names: str, embedding: str, decoder: str, lowest: bool, final_norm: str) -> Layout:
    """A layout with q, k, v in one and padded vocabulary. names: of qkv, its norm, wo, the ffn's norm, w12 and w3."""
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


OURS = (
    "encoder.weight",
    *_QKV,
    *(f"{BLOCK}{x}.weight" for x in ("wo", "ffn.w12", "ffn.w3", "attention_norm", "ffn_norm")),
    "layer_norm_2.weight",
    "decoder.weight",
    "decoder.bias",
)
# Embedding, decoder, whether the padding's bias is the lowest number, final norm.
_TE = ("amplify.encoder.weight", "decoder", True, "decoder.layer_norm_weight")
_MEGATRON = ("embedding.word_embeddings.weight", "output_layer", False, "encoder.final_layernorm.weight")

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("hf", tuple(Same(name, (name,)) for name in OURS), padded=False),
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
