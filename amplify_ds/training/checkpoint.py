"""Checkpoints: directories that are complete or absent, and independent of the number of ranks and the ZeRO stage.

    RUN/checkpoints/step-00000150/
        model.safetensors       float32 weights under the published names
        optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME (absent before the first step)
        state.json              step, configuration, fingerprints of the data, checksums of the other two and of itself

A checkpoint is written under a hidden name, flushed to disk, read back and renamed, so everything under a final name
was complete once. The newest checkpoint is found by its name; there is no pointer that could be wrong. Nothing is
pickled. This module writes and reads single checkpoints. retention.py, used by the process that holds the run's lock,
decides which ones to keep and what to do with damaged ones.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter
from pydantic.config import with_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from typing_extensions import TypedDict

from amplify_ds.errors import AmplifyError, advice, explain
from amplify_ds.files import content_digest, forget_cached, sha256, sync, usual_permissions
from amplify_ds.structured import parse_json
from amplify_ds.training.progress import Progress

FORMAT = 3
WITHOUT_DIGEST = 2  # the previous format, whose state.json has no checksum of itself
DIGEST = "state_sha256"
SET_ASIDE = ".damaged"  # suffix of a damaged checkpoint, which is no longer used
NAME = re.compile(r"step-([0-9]{8,})")
WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_LARGEST_STATE = 2**28  # bytes; some thousand evaluations take a few MB
# System errors that show that a part of the checkpoint is missing or unreadable. Any other error (no permission, too
# many open files, a file server that does not answer) says nothing about the checkpoint.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


@with_config(ConfigDict(strict=True))
class State(TypedDict):
    """The content of state.json without its format and checksum."""

    step: Annotated[int, Field(ge=0)]  # optimizer steps taken
    progress: Progress
    binding: dict[str, Any]  # settings and data that must be the same when the run continues
    settings: dict[str, Any]
    model: dict[str, Any]
    precision: str
    skips: list[dict[str, Any]]
    origin: dict[str, Any] | None
    files: dict[str, _Sha256]


_state_type = TypeAdapter(State)


class Damaged(AmplifyError):
    """A checkpoint is incomplete or differs from what was written."""


class Unsupported(AmplifyError):
    """A checkpoint has a format that this version does not read."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk. `state` is the content of state.json."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.state["step"]

    def reader(self) -> Callable[[str, str], torch.Tensor]:
        """Return a function (kind, name) -> full float32 tensor; kind is "weight", "exp_avg" or "exp_avg_sq"."""
        weights = safe_open(self.path / WEIGHTS, "pt")
        moments = safe_open(self.path / MOMENTS, "pt") if self.step else None

        def tensor(kind: str, name: str) -> torch.Tensor:
            try:
                if kind == "weight":
                    return weights.get_tensor(name)
                assert moments is not None, "a checkpoint of step 0 has no moments"
                return moments.get_tensor(f"{kind}.{name}")
            except SafetensorError as error:
                raise AmplifyError(f"{self.path}: damaged: {kind} of {name} is missing ({error})") from None

        return tensor

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights by name. Raises Damaged if they are gone, since training deletes older checkpoints."""
        with _reading(self.path):
            with open(self.path / WEIGHTS, "rb"):  # safetensors reports every failure as a missing file
                pass
            with safe_open(self.path / WEIGHTS, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}


def folder(run: Path) -> Path:
    """Return the directory that contains the checkpoints of a run."""
    return run / "checkpoints"


def name_of(step: int) -> str:
    """Return the directory name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name, or None if `path` is not named like a checkpoint."""
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match and path.name == name_of(int(match[1])) else None


def by_step(run: Path) -> dict[int, Path]:
    """Return {step: path} of everything named like a checkpoint in a run, sound or not, ordered by step."""
    try:
        paths = {step: path for path in folder(run).iterdir() if (step := step_of(path)) is not None}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return dict(sorted(paths.items()))


def listing(run: Path) -> list[Path]:
    """Return the paths of everything named like a checkpoint in a run, ordered by step."""
    return list(by_step(run).values())


def open_checkpoint(path: Path) -> CheckpointFile:
    """Return the checkpoint at `path` after reading its state and the headers of the other files.

    Raises Damaged, Unsupported, or another AmplifyError if `path` cannot be read (for example without permission).
    """
    with _reading(path):
        with open(path / STATE, "rb") as file:
            text = file.read(_LARGEST_STATE + 1)
        if len(text) > _LARGEST_STATE:
            raise ValueError(f"{STATE} has more than {_LARGEST_STATE:,} bytes")
        state = _checked(path, text)
        for name in state["files"]:
            with open(path / name, "rb"):  # safetensors reports every failure as a missing file
                pass
            with safe_open(path / name, "pt"):  # the header contains the file's size, so a truncated file fails here
                pass
    return CheckpointFile(path, state)


def _checked(path: Path, text: bytes) -> dict[str, Any]:
    """Return the content of state.json. Raises ValueError if it is not as it was written, or Unsupported."""
    state = parse_json(text)
    if not isinstance(state, dict):
        raise ValueError(f"{STATE} is not a JSON object")
    if DIGEST in state and state[DIGEST] != content_digest(state, DIGEST):
        raise ValueError(f"{STATE} was altered: it does not match its checksum")
    if type(state.get("format")) is not int or (state["format"] == FORMAT and DIGEST not in state):
        raise ValueError(f"{STATE} has no format or no checksum")
    if state["format"] not in (WITHOUT_DIGEST, FORMAT):
        version = "a newer" if state["format"] > FORMAT else "an older"
        raise Unsupported(
            f"{path}: checkpoint format {state['format']}, this version of amplify_ds reads {WITHOUT_DIGEST} and "
            f"{FORMAT}. Use {version} version of amplify_ds, or choose another --output."
        )
    _state_type.validate_json(text)  # raises a ValueError
    needed = {WEIGHTS, MOMENTS} if state["step"] else {WEIGHTS}
    if not needed <= set(state["files"]) <= {WEIGHTS, MOMENTS}:
        raise ValueError(f"{STATE} gives checksums for {sorted(state['files'])}, expected {sorted(needed)}")
    if unknown := set(state["progress"]) - {field.name for field in fields(Progress)}:
        raise ValueError(f"{STATE}: progress has unknown entries {sorted(unknown)}")
    if state["progress"].get("step") != state["step"] or step_of(path) not in (None, state["step"]):
        raise ValueError(f"{STATE} belongs to step {state['step']}")
    return state


def verify(opened: CheckpointFile) -> CheckpointFile:
    """Return `opened` if all its files match the checksums in state.json. Raises Damaged if one does not."""
    with _reading(opened.path):
        for name, expected in opened.state["files"].items():
            if (digest := sha256(opened.path / name)) != expected:
                raise Damaged(f"{opened.path / name}: was altered: its sha256 is {digest}, {STATE} says {expected}.")
    return opened


def open_verified(path: Path) -> CheckpointFile:
    """Return the checkpoint at `path` with every file verified. Raises what `open_checkpoint` and `verify` raise."""
    return verify(open_checkpoint(path))


def newest(run: Path, read: Callable[[Path], CheckpointFile] = open_verified) -> CheckpointFile | None:
    """Return the newest checkpoint of a run, verified unless `read` is open_checkpoint; None if the run has none.

    Raises Damaged if the newest is damaged. The message names the newest sound one, and the user decides whether to use
    it. (Training falls back by itself, see retention.py.)
    """
    paths = listing(run)
    if not paths:
        return None
    try:
        return read(paths[-1])
    except Damaged as error:
        older = next((path for path in reversed(paths[:-1]) if _is_sound(path)), None)
        raise Damaged(
            f"{error} It is the newest checkpoint of {run}. "
            + (f"To use the newest sound one, give its path: {older}" if older else "No older one is sound.")
        ) from None


def _is_sound(path: Path) -> bool:
    try:
        return bool(open_verified(path))
    except AmplifyError:
        return False


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors of reading a checkpoint into Damaged, or into another AmplifyError if they do not show damage."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise AmplifyError(
                f"{error.filename or path}: cannot be read: {error.strerror}. {advice(error.errno)} The checkpoint "
                "itself may be sound."
            ) from None
        raise _damaged(path, f"{error.filename or path}: {error.strerror}") from None
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, " ".join(str(error).split("\n    For further")[0].split())) from None


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(
        f"{path}: not a complete checkpoint ({why}). Expected a directory with {WEIGHTS}, {MOMENTS} and {STATE}."
    )


def write(run: Path, named_state: Iterable[tuple[str, torch.Tensor, dict]], state: dict[str, Any]) -> CheckpointFile:
    """Write a checkpoint from (name, weight, moments) triples as FullState.named yields them; return it, read back.

    Raises AmplifyError if it cannot be written. In that case no partial checkpoint is left, and older ones are intact.
    """
    weights, moments = {}, {}
    for name, weight, parameter_moments in named_state:
        weights[name] = weight
        moments.update({f"{key}.{name}": value for key, value in parameter_moments.items()})
    final = folder(run) / name_of(state["step"])
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, tensors in ((WEIGHTS, weights), (MOMENTS, moments)):
            if tensors:
                with usual_permissions(partial / name):
                    save_file(tensors, partial / name, metadata={"format": "pt"})
        files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        content = {"format": FORMAT, **state, "files": files}
        content = json.loads(json.dumps(content))  # as it will be read: keys become text, tuples become lists
        content[DIGEST] = content_digest(content, DIGEST)
        (partial / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync(path)
        for name in files:
            forget_cached(partial / name)
        written = open_verified(partial)
        partial.rename(final)
        sync(final.parent)
    except (OSError, SafetensorError, AmplifyError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = explain(error) or str(error).rstrip(".") + "."
        raise AmplifyError(
            f"{final}: the checkpoint could not be written: {why} Older checkpoints are intact: the same command "
            "continues from the newest one."
        ) from error
    return replace(written, path=final)
