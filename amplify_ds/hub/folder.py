"""Read a model from a checkpoint, a run, a model folder in any layout, or the Hugging Face hub.

The layout of a folder is recognised by the names of its tensors (layouts.py). Every tensor is used, or named in an
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
LARGEST = 2**20  # limit of every size in config.json
# The record of training, in state.json of a checkpoint or provenance.json of an export.
HISTORY = ("step", "settings", "binding", "progress", "precision", "origin")
EXPORTED_FROM = "exported_from"  # in provenance.json: the locations that the weights passed through, oldest first


@dataclass(frozen=True)
class Source:
    """A model that was read. `history`: the record of its training (HISTORY, EXPORTED_FROM); empty if it has none."""

    name: str  # an absolute path, or the name on the hub
    path: Path
    layout: str
    config: Shape
    weights: conversion.Weights  # with the published names, in the type of the file
    files: dict[str, str]  # {name: sha256} of the weight files
    history: dict[str, Any]
    notes: list[str]  # what was ignored, dropped or assumed

    def model(self) -> Encoder:
        """Return the model in float32 and evaluation mode."""
        with torch.device("meta"), _NoInitialisation():
            model = Encoder(self.config)
        model.load_state_dict({name: tensor.float() for name, tensor in self.weights.items()}, assign=True)
        return model.eval()

    def location(self) -> dict[str, Any]:
        """Return path, layout and checksums of the weights, and the commit if they came from the hub, as JSON."""
        digests = list(self.files.values())
        location = {"path": self.name, "layout": self.layout, "sha256": digests[0] if len(digests) == 1 else self.files}
        if self.path.parent.name == "snapshots":  # in the hub's cache
            location["commit"] = self.path.name
        return location


class _NoInitialisation(torch.overrides.TorchFunctionMode):
    """Skip torch.nn.init: on the meta device it has no effect, but it imports torch's compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def find_checkpoint(path: Path) -> checkpoint.CheckpointFile | None:
    """Return the checkpoint at `path`, or the newest of the run at `path`; None if it is neither."""
    if (path / checkpoint.STATE).exists() or checkpoint.NAME.fullmatch(path.name):
        return checkpoint.open_verified(path)
    if (path / run_directory.DESCRIPTION).exists():
        newest = checkpoint.newest(path)
        if newest is None:
            raise AmplifyError(f"{path}: this run has no complete checkpoint yet")
        return newest
    return None


def locate(source: str | Path) -> tuple[Path, str]:
    """Return the path of `source`, downloaded if it names a model on the hub, and its full name for the record."""
    if not Path(source).exists() and is_hub_name(str(source)):
        return download(str(source)), str(source)
    return Path(source), str(Path(source).resolve())


def read_source(source: str | Path, saved: checkpoint.CheckpointFile | None = None) -> Source:
    """Return the model of a checkpoint, a run (its newest), a model folder in any layout, or a hub name NAME@REVISION.

    saved: the result of an earlier `find_checkpoint`, which is not verified again. Raises AmplifyError if `source` is
    none of these, if its tensors do not match its configuration or are not finite, or if it has another vocabulary.
    """
    path, name = locate(source)
    saved = saved or find_checkpoint(path)
    config_name, assumption = CONFIG, None
    if saved is not None:
        layout = layouts.LAYOUTS["hf"]
        files = {checkpoint.WEIGHTS: saved.state["files"][checkpoint.WEIGHTS]}
        path, raw, weights = saved.path, saved.state["model"], saved.weights()
        history = {key: saved.state[key] for key in HISTORY}
    else:
        weights, paths = read_tensors(path)
        layout = conversion.recognise(weights, str(path))
        raw, provenance = read_json(path / CONFIG), read_json(path / PROVENANCE) or {}
        if raw is None:
            raw, assumption = official.read_config(path, FIELDS)
            config_name = official.CONFIG
        history = {key: provenance[key] for key in (*HISTORY, EXPORTED_FROM) if key in provenance}
        files = {file.name: sha256(file) for file in paths}
    _check_vocabulary(path / config_name, raw, weights, layout)
    config, note = _config(path / config_name, raw, weights, layout)
    weights, notes = conversion.to_published(weights, config, layout, str(path))
    check_finite(path, weights)
    return Source(name, path, layout.name, config, weights, files, history, [*filter(None, [assumption, note]), *notes])


def load_model(source: str | Path, saved: checkpoint.CheckpointFile | None = None) -> Encoder:
    """Return the model (float32, evaluation mode) of anything that `read_source` accepts, and print its notes."""
    model = read_source(source, saved)
    print_notes(model)
    return model.model()


def initial_weights(source: str | Path) -> tuple[conversion.Weights, dict[str, Any]]:
    """Return the weights, in float32, of anything that `read_source` accepts, and their origin for the run's record."""
    model = read_source(source)
    print_notes(model)
    origin = model.location() | model.history
    if progress := origin.get("progress"):
        origin["progress"] = {key: progress[key] for key in ("residues", "skipped")}
    return {name: tensor.float() for name, tensor in model.weights.items()}, origin


def print_notes(model: Source) -> None:
    """Print the training step of the weights and the notes to standard error."""
    if "step" in model.history:
        path = "" if str(model.path) == model.name else f" ({model.path})"
        print(f"{model.name}: step {model.history['step']}{path}", file=sys.stderr)
    for note in model.notes:
        print(f"note: {model.name}: {note}", file=sys.stderr)


def _config(file: Path, raw: dict[str, Any] | None, weights, layout) -> tuple[Shape, str | None]:
    """Return the configuration, and a note if it was inferred. file: the file of which `raw` is the content."""
    if raw is None:
        return conversion.config_from_shapes(weights, layout, str(file.parent))
    known = {key: value for key, value in raw.items() if key in FIELDS}
    sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size", "max_length"), LARGEST)
    sizes |= {"num_hidden_layers": len(weights)}  # building the table of shapes takes time for each layer
    for key, largest in sizes.items():
        if key in known and (type(known[key]) is not int or not 1 <= known[key] <= largest):
            reason = f" (there are {len(weights)} tensors)" if key == "num_hidden_layers" else ""
            raise AmplifyError(
                f"{file}: {key} is {known[key]!r:.40}, expected a whole number from 1 to {largest:,}{reason}"
            )
    try:
        return Shape(**{**known, "vocab_size": len(TOKENS)}), None
    except (ValueError, TypeError) as error:
        raise AmplifyError(f"{file}: {error}") from None


def _check_vocabulary(
    file: Path, raw: dict[str, Any] | None, weights: conversion.Weights, layout: layouts.Layout
) -> None:
    """Raise AmplifyError unless the folder's vocabulary agrees with vocab.py. file: of which `raw` is the content."""
    path = file.parent
    sizes = (len(TOKENS), layouts.PADDED_VOCABULARY) if layout.padded else (len(TOKENS),)
    rows = layouts.PADDED_VOCABULARY if layout.padded else len(TOKENS)
    embedding = weights.get(layout.name_of("encoder.weight"))
    reasons = []
    if embedding is not None and len(embedding) != rows:
        reasons.append(f"{len(embedding)} rows in {layout.name_of('encoder.weight')}, expected {rows}")
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
    except (TypeError, KeyError, ValueError, AttributeError):  # another kind of tokenizer, which cannot be checked
        ids = {}
    for token, index in ids.items():
        if (index < len(TOKENS) and TOKENS[index] != token) or (token in TOKENS and TOKENS.index(token) != index):
            reasons.append(f"tokenizer.json: {token!r} is {index}")
    if reasons:
        raise AmplifyError(
            f"{path}: its vocabulary differs from AMPLIFY's {len(TOKENS)} tokens (amplify_ds/vocab.py): "
            f"{'; '.join(reasons[:4])}"
        )
