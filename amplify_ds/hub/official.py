"""The checkpoint layout of the official code (chandar-lab/AMPLIFY): model.safetensors beside a config.yaml.

config.yaml is the composed Hydra configuration of the training run. The official loader builds the model from its
sections `model` and `tokenizer` together, under the field names of config.json; what they leave out has the defaults of
the official code. Trainer and data set do not matter here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from amplify_ds.errors import AmplifyError
from amplify_ds.structured import read_yaml
from amplify_ds.vocab import TOKENS

CONFIG = "config.yaml"
MAX_LENGTH = 2048  # of the official code, where the configuration has none
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_FLOATS = ("norm_eps", "embedding_init_range", "decoder_init_range")
_FIXED = {"_name_": "AMPLIFY", "normalized_transformer": False}  # of the model that is built here


def read_config(path: Path, fields: Collection[str]) -> tuple[dict[str, Any] | None, str | None]:
    """(the configuration as config.json has it, a sentence on what was assumed); None, None without a config.yaml.

    path: the folder. fields: the names that config.json can have. Raises AmplifyError, naming the key, for a file that
    is no such configuration, lacks a size of the model, or describes another model or vocabulary.
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
        lacking = "tokenizer" if isinstance(model, dict) else "model"
        hint = " The file with `defaults` is a template: the composed one is in .hydra/ of the run."
        raise AmplifyError(
            f"{file}: has no section `{lacking}`; expected the configuration of a model of the official AMPLIFY code."
            + (hint if "defaults" in content else "")
        )
    if missing := [key for key in _REQUIRED if model.get(key) is None]:
        raise AmplifyError(f"{file}: the section `model` lacks {', '.join(missing)}")
    if unknown := sorted(map(str, model.keys() - {*fields, *_FIXED})):
        raise AmplifyError(f"{file}: the section `model` has {', '.join(unknown)}, which AMPLIFY's does not")
    if twice := sorted(model.keys() & tokenizer.keys()):
        raise AmplifyError(f"{file}: {', '.join(twice)} appears in both `model` and `tokenizer`; keep one")
    for key, value in _FIXED.items():
        if model.get(key, value) != value:
            raise AmplifyError(f"{file}: {key} is {model[key]!r}, expected {value!r}; no other variant is supported")
    _check_tokens(path, tokenizer)
    found = {key: value for key, value in (model | tokenizer).items() if key in fields}
    for key, value in found.items():
        if isinstance(value, str) and "${" in value:
            raise AmplifyError(f"{file}: {key} is the reference {value}; replace it by its value")
        if key in _FLOATS:
            found[key] = _number(file, key, value)
    if str(found.get("hidden_act", "")).lower() == "swiglu":  # the official code ignores case
        found["hidden_act"] = "SwiGLU"
    if found.get("max_length") is not None:
        return found, None
    return found | {"max_length": MAX_LENGTH}, (
        f"{CONFIG} gives no max_length for the model: {MAX_LENGTH} is taken, as in the official code"
    )


def _number(file: Path, key: str, value: Any) -> float:
    """YAML takes 1e-05 for text, Hydra for a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise AmplifyError(f"{file}: {key} is {value!r}, expected a number") from None


def _check_tokens(path: Path, tokenizer: dict[str, Any]) -> None:
    """AmplifyError if the vocabulary file lies in the folder, too, and lists other tokens than ours."""
    file = path / Path(str(tokenizer.get("vocab_path") or "amplify_vocab.txt")).name
    if not file.is_file():
        return
    tokens = file.read_text(encoding="utf-8", errors="replace").split("\n")
    tokens = [token.strip() for token in tokens if token.strip()]
    if tokens != list(TOKENS):
        raise AmplifyError(
            f"{file}: lists another vocabulary than AMPLIFY's {len(TOKENS)} tokens (amplify_ds/vocab.py): "
            f"{', '.join(tokens[:8])} …"
        )
