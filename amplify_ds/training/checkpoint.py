"""Checkpoints: a directory that is complete or absent, and knows nothing of ranks or ZeRO stage.

    RUN/checkpoints/step-00000150/
        model.safetensors       float32 weights under the published names
        optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME (absent before the first step)
        state.json              step, configuration, fingerprints of the data, checksums of the other two and of itself

A checkpoint is written under a hidden name, flushed to disk, read back and then renamed: whatever is found under the
final name was whole once. The newest is found by its name; there is no pointer that could be wrong. No pickle anywhere.
This module writes one checkpoint and reads any. Which are kept, and what becomes of damaged ones, is decided in
retention.py by the process that holds the run's lock.
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
WITHOUT_DIGEST = 2  # the format before: its state.json carries no checksum of itself
DIGEST = "state_sha256"
SET_ASIDE = ".damaged"  # behind the name of one that is not used any more
NAME = re.compile(r"step-([0-9]{8,})")
WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_LARGEST_STATE = 2**28  # bytes; some thousand evaluations take a few MB
# What the system says of a checkpoint that lacks a part. Anything else (no permission, too many open files, a file
# server that does not answer) says nothing about the checkpoint.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
_Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


@with_config(ConfigDict(strict=True))
class State(TypedDict):
    """What state.json holds, beside its format and its checksum."""

    step: Annotated[int, Field(ge=0)]  # optimizer steps taken
    progress: Progress
    binding: dict[str, Any]  # what must be the same when the run continues
    settings: dict[str, Any]
    model: dict[str, Any]
    precision: str
    skips: list[dict[str, Any]]
    origin: dict[str, Any] | None
    files: dict[str, _Sha256]


_shape = TypeAdapter(State)


class Damaged(AmplifyError):
    """What stands under a checkpoint's name is not what was written."""


class Unsupported(AmplifyError):
    """A checkpoint of a format that this version does not read."""


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
        """tensors(kind, name) -> full float32 tensor; kind is "weight", "exp_avg" or "exp_avg_sq"."""
        weights = safe_open(self.path / WEIGHTS, "pt")
        moments = safe_open(self.path / MOMENTS, "pt") if self.step else None

        def tensor(kind: str, name: str) -> torch.Tensor:
            try:
                if kind == "weight":
                    return weights.get_tensor(name)
                assert moments is not None, "before the first step there are none to ask for"
                return moments.get_tensor(f"{kind}.{name}")
            except SafetensorError as error:
                raise AmplifyError(f"{self.path}: holds no {kind} of {name} ({error}); it is damaged") from None

        return tensor

    def weights(self) -> dict[str, torch.Tensor]:
        """Raises Damaged when they are gone: training deletes older checkpoints."""
        with _reading(self.path):
            with open(self.path / WEIGHTS, "rb"):  # safetensors calls every failure a missing file
                pass
            with safe_open(self.path / WEIGHTS, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}


def folder(run: Path) -> Path:
    return run / "checkpoints"


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None for any other name."""
    found = NAME.fullmatch(path.name)
    return int(found[1]) if found and path.name == name_of(int(found[1])) else None


def by_step(run: Path) -> dict[int, Path]:
    """What stands under the names of checkpoints in a run, sound or not, in the order of their steps."""
    try:
        found = {step: path for path in folder(run).iterdir() if (step := step_of(path)) is not None}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return dict(sorted(found.items()))


def listing(run: Path) -> list[Path]:
    """The paths of `by_step`."""
    return list(by_step(run).values())


def open_checkpoint(path: Path) -> CheckpointFile:
    """Read the state and look at the headers of the other files.

    Raises Damaged, Unsupported, or another AmplifyError when `path` cannot be looked at (no permission …).
    """
    with _reading(path):
        with open(path / STATE, "rb") as file:
            text = file.read(_LARGEST_STATE + 1)
        if len(text) > _LARGEST_STATE:
            raise ValueError(f"{STATE} has more than {_LARGEST_STATE:,} bytes")
        state = _checked(path, text)
        for name in state["files"]:
            with open(path / name, "rb"):  # safetensors calls every failure a missing file
                pass
            with safe_open(path / name, "pt"):  # the header holds the file's size: a truncated file fails here
                pass
    return CheckpointFile(path, state)


def _checked(path: Path, text: bytes) -> dict[str, Any]:
    """The content of state.json, if it is what was written."""
    state = parse_json(text)
    if not isinstance(state, dict):
        raise ValueError(f"{STATE} holds no JSON object")
    if DIGEST in state and state[DIGEST] != content_digest(state, DIGEST):
        raise ValueError(f"{STATE} was altered: it does not match the checksum that it carries")
    if type(state.get("format")) is not int or (state["format"] == FORMAT and DIGEST not in state):
        raise ValueError(f"{STATE} lacks its format or its checksum")
    if state["format"] not in (WITHOUT_DIGEST, FORMAT):
        version = "a newer" if state["format"] > FORMAT else "an older"
        raise Unsupported(
            f"{path}: has checkpoint format {state['format']}, this version of amplify_ds reads {WITHOUT_DIGEST} and "
            f"{FORMAT}. Use {version} version of amplify_ds, or choose another --output."
        )
    _shape.validate_json(text)  # raises a ValueError
    needed = {WEIGHTS, MOMENTS} if state["step"] else {WEIGHTS}
    if not needed <= set(state["files"]) <= {WEIGHTS, MOMENTS}:
        raise ValueError(f"{STATE} gives checksums for {sorted(state['files'])}, expected {sorted(needed)}")
    if unknown := set(state["progress"]) - {field.name for field in fields(Progress)}:
        raise ValueError(f"{STATE} has a progress with {sorted(unknown)}")
    if state["progress"].get("step") != state["step"] or step_of(path) not in (None, state["step"]):
        raise ValueError(f"{STATE} is that of step {state['step']}")
    return state


def verify(found: CheckpointFile) -> CheckpointFile:
    """Return it, or raise Damaged when a file does not have the checksum that state.json gives."""
    with _reading(found.path):
        for name, expected in found.state["files"].items():
            if (digest := sha256(found.path / name)) != expected:
                raise Damaged(f"{found.path / name}: was altered: its sha256 is {digest}, {STATE} says {expected}.")
    return found


def open_verified(path: Path) -> CheckpointFile:
    """Both: read the state and compare every file with its checksum. Raises what they raise."""
    return verify(open_checkpoint(path))


def newest(run: Path, read: Callable[[Path], CheckpointFile] = open_verified) -> CheckpointFile | None:
    """The newest checkpoint of a run, verified unless `read` is open_checkpoint; None when the run has none.

    Raises Damaged when the newest is damaged, naming an older one that is sound: whoever uses a run's result must
    decide whether that will do. (Training decides by itself: retention.py.)
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
            + (f"To use the newest sound one, name it: {older}" if older else "No older one is sound.")
        ) from None


def _is_sound(path: Path) -> bool:
    try:
        return bool(open_verified(path))
    except AmplifyError:
        return False


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell damage from other failures of reading a checkpoint."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise AmplifyError(
                f"{error.filename or path}: cannot be read: {error.strerror}. {advice(error.errno)} This says nothing "
                "about the checkpoint itself."
            ) from None
        raise _damaged(path, f"{error.filename or path}: {error.strerror}") from None
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, " ".join(str(error).split("\n    For further")[0].split())) from None


def _damaged(path: Path, why: str) -> Damaged:
    return Damaged(
        f"{path}: not a complete checkpoint ({why}). Expected a directory with {WEIGHTS}, {MOMENTS} and {STATE}."
    )


def write(run: Path, named_state: Iterable[tuple[str, torch.Tensor, dict]], state: dict[str, Any]) -> CheckpointFile:
    """Write one checkpoint from (name, weight, moments) triples, as Engine.named_state gives them, and read it back.

    Raises AmplifyError when it cannot be written; nothing is left then, and older checkpoints are untouched.
    """
    weights, moments = {}, {}
    for name, weight, of_parameter in named_state:
        weights[name] = weight
        moments.update({f"{key}.{name}": value for key, value in of_parameter.items()})
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
        content = json.loads(json.dumps(content))  # as it will be read: keys are text, tuples are lists
        content[DIGEST] = content_digest(content, DIGEST)
        (partial / STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            sync(path)
        for name in files:
            forget_cached(partial / name)
        found = open_verified(partial)
        partial.rename(final)
        sync(final.parent)
    except (OSError, SafetensorError, AmplifyError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = explain(error) or str(error).rstrip(".") + "."
        raise AmplifyError(
            f"{final}: the checkpoint could not be written: {why} Older checkpoints are untouched: the same command "
            "continues from the newest one."
        ) from None
    return replace(found, path=final)
