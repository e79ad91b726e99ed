"""Weights of one layout to those of another, by way of ours: which layout is it, does everything fit, convert.

Shapes as in layouts.py. Types are kept: nothing is rounded, so there and back gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.hub.layouts import BLOCK, LAYOUTS, OURS, Layout
from amplify_ds.model.shape import Shape
from amplify_ds.vocab import TOKENS

Weights = dict[str, torch.Tensor]


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


def config_from_shapes(weights: Mapping[str, torch.Tensor], layout: Layout, where: str) -> tuple[Shape, str]:
    """The configuration that the shapes show, and a sentence on what they do not.

    Raises AmplifyError when embedding or first layer are missing or no AMPLIFY has their shapes.
    """
    try:
        _, hidden_size = weights[layout.theirs("encoder.weight")].shape
        ffn_size = weights[layout.theirs(f"{BLOCK}ffn.w12.weight").format(0)].shape[0] // 2
    except (KeyError, ValueError) as error:
        raise AmplifyError(
            f"{where}: has no config.json, and its shapes do not give one ({layout.name} layout; {error}). Add the "
            "config.json of the model."
        ) from None
    head_size = 64  # of every published AMPLIFY
    if hidden_size % head_size or ffn_size % 8:
        raise AmplifyError(
            f"{where}: has no config.json, and its shapes are not those of an AMPLIFY with heads of {head_size} "
            f"(hidden size {hidden_size}, SwiGLU width {ffn_size}). Add the config.json of the model."
        )
    sizes = dict(
        hidden_size=hidden_size, num_hidden_layers=layout.layers(weights), num_attention_heads=hidden_size // head_size
    )
    # Several nominal sizes give one SwiGLU width: the published models have four times the hidden size.
    config = Shape(**sizes, intermediate_size=4 * hidden_size)
    if config.ffn_size != ffn_size:
        config = Shape(**sizes, intermediate_size=3 * ffn_size // 2)
    return config, (
        f"no config.json: the shapes give {config.num_hidden_layers} layers, hidden size {hidden_size} and SwiGLU "
        f"width {ffn_size}; taken as published, for they do not show it: heads of {head_size}, norm_eps "
        f"{config.norm_eps}, max_length {config.context_length}, the order of the vocabulary"
    )


def expected_shapes(config: Shape, layout: Layout) -> dict[str, tuple[int, ...]]:
    """{their name: shape} for a configuration: the table applied to tensors without content."""
    vocabulary, size, width = config.vocab_size, config.hidden_size, config.ffn_size
    shapes = {
        "encoder.weight": (vocabulary, size),
        "decoder.weight": (vocabulary, size),
        "decoder.bias": (vocabulary,),
        f"{BLOCK}ffn.w12.weight": (2 * width, size),
        f"{BLOCK}ffn.w3.weight": (size, width),
        **{f"{BLOCK}{x}.weight": (size, size) for x in ("q", "k", "v", "wo")},
    }
    ours = {
        name.format(i): torch.empty(shapes.get(name, (size,)), device="meta")
        for name in OURS
        for i in range(config.num_hidden_layers)
    }
    return {name: tuple(tensor.shape) for name, tensor in from_ours(ours, config, layout).items()}


def from_ours(weights: Mapping[str, torch.Tensor], config: Shape, layout: Layout) -> Weights:
    """Our weights as those of `layout`; types are kept."""
    return {
        theirs: rule.join([weights[name] for name in names], config.num_attention_heads).contiguous()
        for theirs, (rule, names) in layout.keys(config.num_hidden_layers).items()
    }


def to_ours(
    weights: Mapping[str, torch.Tensor], config: Shape, layout: Layout, where: str
) -> tuple[Weights, list[str]]:
    """The weights of `layout` as ours, and sentences on what was left behind; types are kept.

    Raises AmplifyError that names every kind of misfit: keys missing, keys too many, shapes.
    """
    expected = expected_shapes(config, layout)
    beside = [key for key in weights if key not in expected and re.fullmatch(layout.ignored, key)]
    found = {key: tuple(tensor.shape) for key, tensor in weights.items() if key not in beside}
    wrong = [
        f"{key}: expected {expected[key]}, found {found[key]}"
        for key in expected.keys() & found.keys()
        if expected[key] != found[key]
    ]
    misfits = {
        "missing": list(expected.keys() - found.keys()),
        "not of this layout": list(found.keys() - expected.keys()),
        "of another shape": wrong,
        "no floating-point numbers": [key for key in found if not weights[key].is_floating_point()],
    }
    if any(misfits.values()):
        raise AmplifyError(
            f"{where}: the weights are not those of its configuration ({layout.name} layout, "
            f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.vocab_size} tokens).\n  "
            + "\n  ".join(f"{len(names)} {what}: {_some(sorted(names))}" for what, names in misfits.items() if names)
        )
    ours: Weights = {}
    notes = [f"ignored, being no weights: {_some(beside)}"] if beside else []
    for theirs, (rule, names) in layout.keys(config.num_hidden_layers).items():
        parts = rule.split(weights[theirs], config.num_attention_heads)
        ours.update(zip(names, parts))
        if not torch.equal(rule.join(parts, config.num_attention_heads), weights[theirs]):
            notes.append(
                f"{theirs}: its padding rows, from row {len(TOKENS)} on, are not the layout's; they are dropped"
            )
    return ours, notes


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest
