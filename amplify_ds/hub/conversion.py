"""Recognise the layout of weights, check them, and convert them to and from the published layout.

Shapes as in layouts.py. Types are kept and nothing is rounded, so converting back gives the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.hub.layouts import BLOCK, LAYOUTS, PUBLISHED_NAMES, Layout
from amplify_ds.model.shape import Shape
from amplify_ds.vocab import TOKENS

Weights = dict[str, torch.Tensor]


def recognise(keys: Iterable[str], where: str) -> Layout:
    """Return the layout that contains most of the keys. Raises AmplifyError if no layout contains any."""
    keys = list(keys)
    best = max(LAYOUTS.values(), key=lambda layout: layout.matches(keys))
    if not best.matches(keys):
        raise AmplifyError(
            f"{where}: these are not the weights of an AMPLIFY model; found {_shortened(keys)}. Supported layouts are "
            f"{', '.join(LAYOUTS)} (amplify_ds/hub/layouts.py)."
        )
    return best


def config_from_shapes(weights: Mapping[str, torch.Tensor], layout: Layout, where: str) -> tuple[Shape, str]:
    """Return the configuration inferred from the shapes, and a note on what was assumed.

    Raises AmplifyError if the embedding or the first layer is missing, or if no AMPLIFY model has these shapes.
    """
    try:
        _, hidden_size = weights[layout.name_of("encoder.weight")].shape
        ffn_size = weights[layout.name_of(f"{BLOCK}ffn.w12.weight").format(0)].shape[0] // 2
    except (KeyError, ValueError) as error:
        raise AmplifyError(
            f"{where}: has no config.json, and it cannot be inferred from the shapes ({layout.name} layout; {error}). "
            "Add the config.json of the model."
        ) from None
    head_size = 64  # in every published AMPLIFY
    if hidden_size % head_size or ffn_size % 8:
        raise AmplifyError(
            f"{where}: has no config.json, and its shapes are not those of an AMPLIFY with heads of {head_size} "
            f"(hidden size {hidden_size}, SwiGLU width {ffn_size}). Add the config.json of the model."
        )
    sizes = dict(
        hidden_size=hidden_size, num_hidden_layers=layout.layers(weights), num_attention_heads=hidden_size // head_size
    )
    # Several nominal sizes give the same SwiGLU width; that of the published models is four times the hidden size.
    config = Shape(**sizes, intermediate_size=4 * hidden_size)
    if config.ffn_size != ffn_size:
        config = Shape(**sizes, intermediate_size=3 * ffn_size // 2)
    return config, (
        f"no config.json: inferred {config.num_hidden_layers} layers, hidden size {hidden_size} and SwiGLU width "
        f"{ffn_size} from the shapes; assumed as published: heads of {head_size}, norm_eps {config.norm_eps}, "
        f"max_length {config.context_length}, the order of the vocabulary"
    )


def expected_shapes(config: Shape, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the tensors of `layout` for a configuration."""
    vocabulary, size, width = config.vocab_size, config.hidden_size, config.ffn_size
    shapes = {
        "encoder.weight": (vocabulary, size),
        "decoder.weight": (vocabulary, size),
        "decoder.bias": (vocabulary,),
        f"{BLOCK}ffn.w12.weight": (2 * width, size),
        f"{BLOCK}ffn.w3.weight": (size, width),
        **{f"{BLOCK}{x}.weight": (size, size) for x in ("q", "k", "v", "wo")},
    }
    published = {
        name.format(i): torch.empty(shapes.get(name, (size,)), device="meta")
        for name in PUBLISHED_NAMES
        for i in range(config.num_hidden_layers)
    }
    return {name: tuple(tensor.shape) for name, tensor in from_published(published, config, layout).items()}


def from_published(weights: Mapping[str, torch.Tensor], config: Shape, layout: Layout) -> Weights:
    """Return published weights converted to `layout`, with their types kept."""
    return {
        name: rule.join([weights[part] for part in parts], config.num_attention_heads).contiguous()
        for name, (rule, parts) in layout.keys(config.num_hidden_layers).items()
    }


def to_published(
    weights: Mapping[str, torch.Tensor], config: Shape, layout: Layout, where: str
) -> tuple[Weights, list[str]]:
    """Return the weights of `layout` converted to the published layout, with their types kept, and notes on what was
    dropped.

    Raises AmplifyError that lists missing keys, unknown keys, wrong shapes and wrong types.
    """
    expected = expected_shapes(config, layout)
    ignored = [key for key in weights if key not in expected and re.fullmatch(layout.ignored, key)]
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items() if key not in ignored}
    wrong = [
        f"{key}: expected {expected[key]}, found {shapes[key]}"
        for key in expected.keys() & shapes.keys()
        if expected[key] != shapes[key]
    ]
    problems = {
        "missing": list(expected.keys() - shapes.keys()),
        "not in this layout": list(shapes.keys() - expected.keys()),
        "with the wrong shape": wrong,
        "not floating-point": [key for key in shapes if not weights[key].is_floating_point()],
    }
    if any(problems.values()):
        raise AmplifyError(
            f"{where}: the weights do not match the configuration ({layout.name} layout, "
            f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.vocab_size} tokens).\n  "
            + "\n  ".join(
                f"{len(names)} {problem}: {_shortened(sorted(names))}" for problem, names in problems.items() if names
            )
        )
    published: Weights = {}
    notes = [f"ignored, since they are not weights: {_shortened(ignored)}"] if ignored else []
    for name, (rule, part_names) in layout.keys(config.num_hidden_layers).items():
        parts = rule.split(weights[name], config.num_attention_heads)
        published.update(zip(part_names, parts))
        if not torch.equal(rule.join(parts, config.num_attention_heads), weights[name]):
            notes.append(f"{name}: its padding rows, from row {len(TOKENS)} on, have unexpected values and are dropped")
    return published, notes


def _shortened(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + rest
