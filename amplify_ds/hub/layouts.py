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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.vocab import TOKENS

PADDED_VOCABULARY = 32
Weights = dict[str, torch.Tensor]


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
        pattern = re.escape(self.theirs(f"{_BLOCK}wo.weight")).replace(r"\{\}", r"(\d+)")
        return 1 + max((int(found[1]) for key in keys if (found := re.fullmatch(pattern, key))), default=-1)


_BLOCK = "transformer_encoder.{}."
_QKV = tuple(f"{_BLOCK}{x}.weight" for x in "qkv")


def _fused(name: str, embedding: str, decoder: str, lowest: bool, final_norm: str, block: str, names: str) -> Layout:
    """A layout with q, k, v in one and padded vocabulary. names: of qkv, its norm, wo, the ffn's norm, w12 and w3."""
    qkv, norm, wo, ffn_norm, w12, w3 = (block + x for x in names.split())
    return Layout(
        name,
        (
            Padded(embedding, ("encoder.weight",)),
            ByHead(qkv, _QKV),
            Same(norm, (f"{_BLOCK}attention_norm.weight",)),
            Same(wo, (f"{_BLOCK}wo.weight",)),
            Same(ffn_norm, (f"{_BLOCK}ffn_norm.weight",)),
            Same(w12, (f"{_BLOCK}ffn.w12.weight",)),
            Same(w3, (f"{_BLOCK}ffn.w3.weight",)),
            Same(final_norm, ("layer_norm_2.weight",)),
            Padded(f"{decoder}.weight", ("decoder.weight",)),
            Padded(f"{decoder}.bias", ("decoder.bias",), lowest),
        ),
    )


_OURS = (
    "encoder.weight", *_QKV, *(f"{_BLOCK}{x}.weight" for x in ("wo", "ffn.w12", "ffn.w3", "attention_norm", "ffn_norm")),
    "layer_norm_2.weight", "decoder.weight", "decoder.bias",
)  # fmt: skip
_MEGATRON = (
    "embedding.word_embeddings.weight", "output_layer", False, "encoder.final_layernorm.weight", "encoder.layers.{}.",
)  # fmt: skip

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("hf", tuple(Same(name, (name,)) for name in _OURS), padded=False),
        _fused(
            "te", "amplify.encoder.weight", "decoder", True, "decoder.layer_norm_weight", "amplify.transformer_encoder.{}.",
            "self_attention.layernorm_qkv.weight self_attention.layernorm_qkv.layer_norm_weight "
            "self_attention.proj.weight layernorm_mlp.layer_norm_weight layernorm_mlp.fc1_weight layernorm_mlp.fc2_weight",
        ),
        _fused(
            "megatron", *_MEGATRON,
            "self_attention.linear_qkv.weight self_attention.linear_qkv.layer_norm_weight "
            "self_attention.linear_proj.weight mlp.linear_fc1.layer_norm_weight mlp.linear_fc1.weight mlp.linear_fc2.weight",
        ),
        _fused(
            "megatron-local", *_MEGATRON,
            "self_attention.linear_qkv.weight input_layernorm.weight self_attention.linear_proj.weight "
            "pre_mlp_layernorm.weight mlp.linear_fc1.weight mlp.linear_fc2.weight",
        ),
    )
}  # fmt: skip


def recognise(keys: Iterable[str], where: str) -> Layout:
    """The layout that knows most of the keys. Raises AmplifyError when no layout knows any."""
    keys = list(keys)
    best = max(LAYOUTS.values(), key=lambda layout: layout.matches(keys))
    if not best.matches(keys):
        raise AmplifyError(
            f"{where}: these are not the weights of an AMPLIFY model; found {_some(keys)}. Known are the layouts "
            f"{', '.join(LAYOUTS)} (amplify_ds/hub/layouts.py)."
        )
    return best


def config_from_shapes(weights: Mapping[str, torch.Tensor], layout: Layout, where: str) -> tuple[AMPLIFYConfig, str]:
    """The configuration that the shapes show, and a sentence on what they do not.

    Raises AmplifyError when embedding or first layer are missing or no AMPLIFY has their shapes.
    """
    try:
        _, hidden_size = weights[layout.theirs("encoder.weight")].shape
        ffn_size = weights[layout.theirs(f"{_BLOCK}ffn.w12.weight").format(0)].shape[0] // 2
    except (KeyError, ValueError) as error:
        raise AmplifyError(
            f"{where}: has no config.json, and its shapes do not give one ({layout.name} layout; {error}). Add the "
            "config.json of the model."
        ) from None
    head_size = 64  # of every published AMPLIFY
    if hidden_size % head_size or ffn_size % 8:
        raise AmplifyError(
            f"{where}: has no config.json, and its shapes are not those of an AMPLIFY with heads of {head_size} (hidden "
            f"size {hidden_size}, SwiGLU width {ffn_size}). Add the config.json of the model."
        )
    sizes = dict(
        hidden_size=hidden_size, num_hidden_layers=layout.layers(weights), num_attention_heads=hidden_size // head_size
    )
    # Several nominal sizes give one SwiGLU width: the published models have four times the hidden size.
    config = AMPLIFYConfig(**sizes, intermediate_size=4 * hidden_size)
    if config.ffn_size != ffn_size:
        config = AMPLIFYConfig(**sizes, intermediate_size=3 * ffn_size // 2)
    return config, (
        f"no config.json: the shapes give {config.num_hidden_layers} layers, hidden size {hidden_size} and SwiGLU width "
        f"{ffn_size}; taken as published, for they do not show it: heads of {head_size}, norm_eps {config.norm_eps}, "
        f"max_length {config.context_length}, the order of the vocabulary"
    )


def expected_shapes(config: AMPLIFYConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """{their name: shape} for a configuration: the table applied to tensors without content."""
    vocabulary, size, width = config.vocab_size, config.hidden_size, config.ffn_size
    shapes = {
        "encoder.weight": (vocabulary, size), "decoder.weight": (vocabulary, size), "decoder.bias": (vocabulary,),
        f"{_BLOCK}ffn.w12.weight": (2 * width, size), f"{_BLOCK}ffn.w3.weight": (size, width),
        **{f"{_BLOCK}{x}.weight": (size, size) for x in ("q", "k", "v", "wo")},
    }  # fmt: skip
    ours = {
        name.format(i): torch.empty(shapes.get(name, (size,)), device="meta")
        for name in _OURS
        for i in range(config.num_hidden_layers)
    }
    return {name: tuple(tensor.shape) for name, tensor in from_ours(ours, config, layout).items()}


def from_ours(weights: Mapping[str, torch.Tensor], config: AMPLIFYConfig, layout: Layout) -> Weights:
    """Our weights as those of `layout`; types are kept."""
    return {
        theirs: rule.join([weights[name] for name in names], config.num_attention_heads).contiguous()
        for theirs, (rule, names) in layout.keys(config.num_hidden_layers).items()
    }


def to_ours(
    weights: Mapping[str, torch.Tensor], config: AMPLIFYConfig, layout: Layout, where: str
) -> tuple[Weights, list[str]]:
    """The weights of `layout` as ours, and sentences on what was left behind; types are kept.

    Raises AmplifyError that names every kind of misfit: keys missing, keys too many, shapes.
    """
    expected = expected_shapes(config, layout)
    beside = [key for key in weights if key not in expected and re.fullmatch(layout.ignored, key)]
    found = {key: tuple(tensor.shape) for key, tensor in weights.items() if key not in beside}
    wrong = [
        f"{key}: expected {expected[key]}, found {found[key]}" for key in expected.keys() & found.keys()
        if expected[key] != found[key]
    ]  # fmt: skip
    misfits = {
        "missing": list(expected.keys() - found.keys()),
        "not of this layout": list(found.keys() - expected.keys()),
        "of another shape": wrong,
        "no floating-point numbers": [key for key in found if not weights[key].is_floating_point()],
    }
    if any(misfits.values()):
        raise AmplifyError(
            f"{where}: the weights are not those of its configuration ({layout.name} layout, "
            f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, vocabulary of {config.vocab_size}).\n  "
            + "\n  ".join(f"{len(names)} {what}: {_some(sorted(names))}" for what, names in misfits.items() if names)
        )
    ours, notes = {}, [f"ignored, being no weights: {_some(beside)}"] if beside else []
    for theirs, (rule, names) in layout.keys(config.num_hidden_layers).items():
        parts = rule.split(weights[theirs], config.num_attention_heads)
        ours.update(zip(names, parts))
        if not torch.equal(rule.join(parts, config.num_attention_heads), weights[theirs]):
            notes.append(f"{theirs}: its padding rows, from row {len(TOKENS)} on, are not the layout's; they are dropped")
    return ours, notes


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest
