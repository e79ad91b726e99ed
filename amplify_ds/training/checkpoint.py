"""Checkpoints: a directory that is complete or absent, and knows nothing of ranks or ZeRO stage.

    RUN/checkpoints/step-00000150/
        model.safetensors       float32 weights under the published names
        optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME (absent before the first step)
        state.json              step, configuration, fingerprints of the data, checksums of the other two

Written under a hidden name, flushed to disk, then renamed: whatever is found under the final name is whole. The
newest one is found by its name; there is no pointer that could be wrong. No pickle anywhere.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from amplify_ds.errors import AmplifyError
from amplify_ds.files import sha256, sync

FORMAT = 2
CONTENT = (
    "step",
    "progress",
    "binding",
    "settings",
    "model",
    "precision",
    "skips",
    "origin",
)  # of state.json, beside the format
NAME = re.compile(r"step-(\d{8,})")
WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk. `state` is the content of state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.state["step"]

    def reader(self):
        """tensors(kind, name) -> full float32 tensor; kind is "weight", "exp_avg" or "exp_avg_sq"."""
        weights = safe_open(self.path / WEIGHTS, "pt")
        moments = safe_open(self.path / MOMENTS, "pt") if self.step else None

        def tensor(kind: str, name: str) -> torch.Tensor:
            try:
                return weights.get_tensor(name) if kind == "weight" else moments.get_tensor(f"{kind}.{name}")
            except SafetensorError as error:
                raise AmplifyError(f"{self.path}: holds no {kind} of {name} ({error}); it is damaged") from None

        return tensor

    def weights(self) -> dict[str, torch.Tensor]:
        with safe_open(self.path / WEIGHTS, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}


def folder(run: Path) -> Path:
    return run / "checkpoints"


def complete(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = folder(run).iterdir() if folder(run).is_dir() else ()
    return sorted((p for p in found if NAME.fullmatch(p.name)), key=lambda p: int(NAME.fullmatch(p.name)[1]))


def open_checkpoint(path: Path) -> CheckpointFile:
    """Raises AmplifyError when `path` is no readable checkpoint."""
    try:
        state = json.loads((path / STATE).read_bytes())
        if state["format"] != FORMAT:
            raise AmplifyError(f"{path}: checkpoint format {state['format']}, this version reads {FORMAT}")
        if missing := [key for key in CONTENT if key not in state]:
            raise KeyError(f"{STATE} lacks {', '.join(missing)}")
        for name in state["files"]:
            with safe_open(path / name, "pt"):  # the header holds the file's size: a truncated file fails here
                pass
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AmplifyError(
            f"{path}: not a complete checkpoint ({type(error).__name__}: {error}). Expected a directory with {WEIGHTS} "
            f"{MOMENTS} and {STATE}."
        ) from None
    return CheckpointFile(path, state)


def verify(found: CheckpointFile) -> CheckpointFile:
    """Return it, or raise AmplifyError when a file does not have the checksum that state.json gives."""
    for name, expected in found.state["files"].items():
        if (digest := sha256(found.path / name)) != expected:
            raise AmplifyError(f"{found.path / name}: was altered: its sha256 is {digest}, {STATE} says {expected}.")
    return found


def newest(
    run: Path, warn: Callable[[str], None] = lambda text: None, check: Callable = lambda found: found
) -> CheckpointFile | None:
    """The newest checkpoint that can be read, and passes `check`; None when there is none at all.

    One that was damaged after it was written is passed over with a warning. Raises AmplifyError when all are damaged.
    """
    damage = None
    for path in reversed(complete(run)):
        try:
            return check(open_checkpoint(path))
        except AmplifyError as error:
            damage = error
            warn(f"warning: {error} The next older checkpoint is used.")
    if damage is not None:
        raise damage
    return None


def write(run: Path, named_state, state: dict[str, Any]) -> Path:
    """Write one checkpoint from (name, weight, moments) triples, as Engine.named_state gives them (rank 0 only).

    Raises AmplifyError when it cannot be written; nothing is left then, and older checkpoints are untouched.
    """
    weights, moments = {}, {}
    for name, weight, of_parameter in named_state:
        weights[name] = weight
        moments.update({f"{key}.{name}": value for key, value in of_parameter.items()})
    final = folder(run) / f"step-{state['step']:08d}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        if moments:
            save_file(moments, partial / MOMENTS, metadata={"format": "pt"})
        files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        (partial / STATE).write_text(json.dumps({"format": FORMAT, **state, "files": files}, indent=1))
        for path in (*partial.iterdir(), partial):
            sync(path)
        if final.exists():  # damaged, or the run would have continued from it
            _remove(final)
        partial.rename(final)
        sync(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise AmplifyError(
            f"{final}: the checkpoint could not be written ({error}). Older checkpoints are untouched; make room and "
            "start the same command again: it continues from the newest one."
        ) from None
    return final


def prune(run: Path, keep_last: int, keep_every: int) -> None:
    """Delete all but the newest `keep_last` and those at multiples of `keep_every` steps (0: none)."""
    for path in complete(run)[:-keep_last]:
        if not (keep_every and int(NAME.fullmatch(path.name)[1]) % keep_every == 0):
            _remove(path)
    for path in folder(run).glob(".step-*"):  # what a killed write or removal left behind
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Take the final name away first: a half deleted directory must not look like a checkpoint."""
    doomed = path.with_name(f".{path.name}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed)
