"""The checkpoint layout of the official code (chandar-lab/AMPLIFY): model.safetensors beside a config.yaml.

config.yaml is the composed Hydra configuration of the training run. The official loader builds the model from its
sections `model` and `tokenizer`, which use the field names of config.json; missing fields have the defaults of the
official code. Other sections are not used here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from amplify_ds.errors import AmplifyError
from amplify_ds.structured import read_yaml
from amplify_ds.vocab import TOKENS

CONFIG = "config.yaml"
MAX_LENGTH = 2048  # the default of the official code
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_FLOATS = ("norm_eps", "embedding_init_range", "decoder_init_range")
_FIXED = {"_name_": "AMPLIFY", "normalized_transformer": False}  # the only supported values


def read_config(path: Path, fields: Collection[str]) -> tuple[dict[str, Any] | None, str | None]:
    """Return (configuration in the form of config.json, note on what was assumed); (None, None) without config.yaml.

    path: the folder. fields: the names that config.json can have. Raises AmplifyError that names the key if the file is
    no such configuration, lacks a size of the model, or describes another model or vocabulary.
    """
    file = path / CONFIG
    try:
        content = read_yaml(file)
    except FileNotFoundError:
        return None, None
    if not isinstance(content, dict):
        raise AmplifyError(f"{file}: expected sections such as `model` and `tokenizer`, found {type(content).__name__}")
    model, tokenizer = content.get("model"), content.get("tokenizer", {})
    if not isinstance(model, dict) or not isinstance(tokenizer, dict):
        section = "tokenizer" if isinstance(model, dict) else "model"
        hint = " A file with `defaults` is a template; the composed configuration is in .hydra/ of the run."
        raise AmplifyError(
            f"{file}: has no section `{section}`; expected a model configuration of the official AMPLIFY code."
            + (hint if "defaults" in content else "")
        )
    if missing := [key for key in _REQUIRED if model.get(key) is None]:
        raise AmplifyError(f"{file}: the section `model` lacks {', '.join(missing)}")
    if unknown := sorted(map(str, model.keys() - {*fields, *_FIXED})):
        raise AmplifyError(f"{file}: unknown keys in the section `model`: {', '.join(unknown)}")
    if repeated := sorted(model.keys() & tokenizer.keys()):
        raise AmplifyError(f"{file}: {', '.join(repeated)} appears in both `model` and `tokenizer`; keep one")
    for key, value in _FIXED.items():
        if model.get(key, value) != value:
            raise AmplifyError(f"{file}: {key} is {model[key]!r}, expected {value!r}; no other variant is supported")
    _check_tokens(path, tokenizer)
    config = {key: value for key, value in (model | tokenizer).items() if key in fields}
    for key, value in config.items():
        if isinstance(value, str) and "${" in value:
            raise AmplifyError(f"{file}: {key} is the reference {value}; replace it by its value")
        if key in _FLOATS:
            config[key] = _number(file, key, value)
    if str(config.get("hidden_act", "")).lower() == "swiglu":  # the official code ignores case
        config["hidden_act"] = "SwiGLU"
    if config.get("max_length") is not None:
        return config, None
    return config | {"max_length": MAX_LENGTH}, (
        f"{CONFIG} has no max_length for the model; assumed {MAX_LENGTH}, the default of the official code"
    )


def _number(file: Path, key: str, value: Any) -> float:
    """Return `value` as a float: YAML reads 1e-05 as text, Hydra as a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise AmplifyError(f"{file}: {key} is {value!r}, expected a number") from None


def _check_tokens(path: Path, tokenizer: dict[str, Any]) -> None:
    """Raise AmplifyError if the folder has a vocabulary file that differs from AMPLIFY's tokens."""
    file = path / Path(str(tokenizer.get("vocab_path") or "amplify_vocab.txt")).name
    if not file.is_file():
        return
    tokens = file.read_text(encoding="utf-8", errors="replace").split("\n")
    tokens = [token.strip() for token in tokens if token.strip()]
    if tokens != list(TOKENS):
        raise AmplifyError(
            f"{file}: its vocabulary differs from AMPLIFY's {len(TOKENS)} tokens (amplify_ds/vocab.py): "
            f"{', '.join(tokens[:8])} …"
        )
