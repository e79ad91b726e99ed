"""Read a model, whatever holds it: a checkpoint, a run, a model folder in any layout, a model of the hub.

The layout of a folder is recognised by its keys (layouts.py). Everything is strict: each tensor is used, or named in an
error or a note.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.files import sha256
from amplify_ds.hub import conversion, layouts, official
from amplify_ds.hub.tensors import check_finite, read_json, read_tensors
from amplify_ds.hub_files import download, is_hub_name
from amplify_ds.model.encoder import Encoder
from amplify_ds.model.shape import FIELDS, Shape
from amplify_ds.training import checkpoint, run_directory
from amplify_ds.vocab import SPECIAL, TOKENS

CONFIG, PROVENANCE = "config.json", "provenance.json"
LARGEST = 2**20  # of any size in config.json
# What a run tells about itself, in a checkpoint's state.json or an export's provenance.json.
HISTORY = ("step", "settings", "binding", "progress", "precision", "origin")
EXPORTED_FROM = "exported_from"  # in provenance.json: the places that the weights came through, the first one first


@dataclass(frozen=True)
class Source:
    """A model as it was found. `history`: what is known of its training (HISTORY, EXPORTED_FROM), empty for a
    model of others.
    """

    name: str  # as a person would name it: an absolute path, or the name on the hub
    path: Path
    layout: str
    config: Shape
    weights: conversion.Weights  # under our names, in the type of the file
    files: dict[str, str]  # {name: sha256} of those that held the weights
    history: dict[str, Any]
    notes: list[str]  # what was ignored, dropped or assumed

    def model(self) -> Encoder:
        """The model, in float32 and evaluation mode."""
        with torch.device("meta"), _NoInitialisation():
            model = Encoder(self.config)
        model.load_state_dict({name: tensor.float() for name, tensor in self.weights.items()}, assign=True)
        return model.eval()

    def place(self) -> dict[str, Any]:
        """Where exactly these weights lay."""
        digests = list(self.files.values())
        found = {"path": self.name, "layout": self.layout, "sha256": digests[0] if len(digests) == 1 else self.files}
        if self.path.parent.name == "snapshots":  # of the hub's cache
            found["commit"] = self.path.name
        return found


class _NoInitialisation(torch.overrides.TorchFunctionMode):
    """Modules are built without drawing values: on the meta device that does nothing, but imports torch's compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def find_checkpoint(path: Path) -> checkpoint.CheckpointFile | None:
    """The checkpoint at `path`, or the newest of the run at `path`; None when it is neither."""
    if (path / checkpoint.STATE).exists() or checkpoint.NAME.fullmatch(path.name):
        return checkpoint.open_verified(path)
    if (path / run_directory.DESCRIPTION).exists():
        found = checkpoint.newest(path)
        if found is None:
            raise AmplifyError(f"{path}: this run has no complete checkpoint yet")
        return found
    return None


def locate(source: str | Path) -> tuple[Path, str]:
    """The path of `source`, downloaded if it is the name of a model on the hub, and its full name for a record."""
    if not Path(source).exists() and is_hub_name(str(source)):
        return download(str(source)), str(source)
    return Path(source), str(Path(source).resolve())


def read_source(source: str | Path, found: checkpoint.CheckpointFile | None = None) -> Source:
    """The model of a checkpoint, a run (its newest), a model folder in any layout, or a hub name (NAME@REVISION).

    found: what `find_checkpoint` gave for it before; it is not verified again. Raises AmplifyError when `source` is
    none of these, when its tensors are not those of its configuration or not finite, and when its vocabulary is
    another one.
    """
    path, name = locate(source)
    found = found or find_checkpoint(path)
    described, told = CONFIG, None
    if found is not None:
        layout = layouts.LAYOUTS["hf"]
        files = {checkpoint.WEIGHTS: found.state["files"][checkpoint.WEIGHTS]}
        path, raw, weights = found.path, found.state["model"], found.weights()
        history = {key: found.state[key] for key in HISTORY}
    else:
        weights, paths = read_tensors(path)
        layout = conversion.recognise(weights, str(path))
        raw, provenance = read_json(path / CONFIG), read_json(path / PROVENANCE) or {}
        if raw is None:
            raw, told = official.read_config(path, FIELDS)
            described = official.CONFIG
        history = {key: provenance[key] for key in (*HISTORY, EXPORTED_FROM) if key in provenance}
        files = {file.name: sha256(file) for file in paths}
    _check_vocabulary(path / described, raw, weights, layout)
    config, note = _config(path / described, raw, weights, layout)
    weights, notes = conversion.to_ours(weights, config, layout, str(path))
    check_finite(path, weights)
    return Source(name, path, layout.name, config, weights, files, history, [*filter(None, [told, note]), *notes])


def load_model(source: str | Path, found: checkpoint.CheckpointFile | None = None) -> Encoder:
    """The model (float32, evaluation mode) of what `read_source` takes; its notes go to standard error."""
    model = read_source(source, found)
    say(model)
    return model.model()


def initial_weights(source: str | Path) -> tuple[conversion.Weights, dict[str, Any]]:
    """The weights of what `read_source` takes, in float32, and where they come from: what a run that begins with them
    records.
    """
    found = read_source(source)
    say(found)
    origin = found.place() | found.history
    if progress := origin.get("progress"):
        origin["progress"] = {key: progress[key] for key in ("residues", "skipped")}
    return {name: tensor.float() for name, tensor in found.weights.items()}, origin


def say(found: Source) -> None:
    """Tell the user, on standard error, which step of training the weights are from, and the notes."""
    if "step" in found.history:
        place = "" if str(found.path) == found.name else f" ({found.path})"
        print(f"{found.name}: step {found.history['step']}{place}", file=sys.stderr)
    for note in found.notes:
        print(f"note: {found.name}: {note}", file=sys.stderr)


def _config(file: Path, raw: dict[str, Any] | None, weights, layout) -> tuple[Shape, str | None]:
    """file: where `raw` is from."""
    if raw is None:
        return conversion.config_from_shapes(weights, layout, str(file.parent))
    known = {key: value for key, value in raw.items() if key in FIELDS}
    sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "max_length"), LARGEST)
    sizes |= {"num_hidden_layers": len(weights)}  # what is built of it takes time for each layer
    for key, largest in sizes.items():
        if key in known and (type(known[key]) is not int or not 1 <= known[key] <= largest):
            of_the_weights = f" (there are {len(weights)} tensors)" if key == "num_hidden_layers" else ""
            raise AmplifyError(
                f"{file}: {key} is {known[key]!r:.40}, expected a whole number from 1 to {largest:,}{of_the_weights}"
            )
    try:
        return Shape(**{**known, "vocab_size": len(TOKENS)}), None
    except (ValueError, TypeError) as error:
        raise AmplifyError(f"{file}: {error}") from None


def _check_vocabulary(
    file: Path, raw: dict[str, Any] | None, weights: conversion.Weights, layout: layouts.Layout
) -> None:
    """AmplifyError unless what the folder says of its vocabulary agrees with vocab.py. file: where `raw` is from."""
    path = file.parent
    sizes = (len(TOKENS), layouts.PADDED_VOCABULARY) if layout.padded else (len(TOKENS),)
    rows = layouts.PADDED_VOCABULARY if layout.padded else len(TOKENS)
    embedding = weights.get(layout.theirs("encoder.weight"))
    reasons = []
    if embedding is not None and len(embedding) != rows:
        reasons.append(f"{len(embedding)} rows in {layout.theirs('encoder.weight')}, expected {rows}")
    if raw is not None and raw.get("vocab_size", len(TOKENS)) not in sizes:
        reasons.append(f"{file.name}: vocab_size {raw['vocab_size']}, expected {' or '.join(map(str, sizes))}")
    for index, token in enumerate(SPECIAL):
        key = f"{token.strip('<>')}_token_id"
        if raw is not None and raw.get(key, index) != index:
            reasons.append(f"{file.name}: {key} {raw[key]}, expected {index}")
    tokenizer = read_json(path / "tokenizer.json") or {}
    try:
        ids = dict(tokenizer.get("model", {}).get("vocab", {}))
        ids |= {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    except (TypeError, KeyError, ValueError, AttributeError):  # a tokenizer of another kind: its file says nothing here
        ids = {}
    for token, index in ids.items():
        if (index < len(TOKENS) and TOKENS[index] != token) or (token in TOKENS and TOKENS.index(token) != index):
            reasons.append(f"tokenizer.json: {token!r} is {index}")
    if reasons:
        raise AmplifyError(
            f"{path}: is a model of another vocabulary than AMPLIFY's {len(TOKENS)} tokens (amplify_ds/vocab.py): "
            f"{'; '.join(reasons[:4])}"
        )
