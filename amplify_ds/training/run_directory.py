"""A run directory: who may write to it, and whether it is the run that is asked for.

RUN/run.json      every setting; names, weights and fingerprints of the training data
RUN/checkpoints/  see checkpoint.py
RUN/events/       TensorBoard
RUN/result.json   written when the last step is done: the run is complete
RUN/stopped.json  stopped on request, and saved (stopping.py);  RUN/stalled.json  a rank did not respond (watchdog.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from amplify_ds.config import RunConfig
from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.structured import read_json
from amplify_ds.training import checkpoint, run_lock, stopping, watchdog
from amplify_ds.training.retention import Checkpoints

DESCRIPTION, RESULT, EVENTS = "run.json", stopping.COMPLETE, "events"


@dataclass(frozen=True)
class Directory:
    """A run directory that is this job's. checkpoints, lock: of rank 0, else None."""

    path: Path
    binding: dict[str, Any]  # what is the same in every part of the run
    checkpoints: Checkpoints | None
    lock: IO[str] | None  # held for as long as this object lives


def open_run(output: Path, run: RunConfig, asked: dict[str, Any], resume: str) -> IO[str]:
    """Make or check the run directory; returns its lock, to be kept for as long as the run writes.

    asked: what must be the same in every part of the run, `RunConfig.binding` and `Mixture.binding`.
    Raises AmplifyError when another process trains there, when the directory holds something else, or when it is the
    run of another configuration; nothing in it is changed then.
    """
    description = output / DESCRIPTION
    if output.exists() and not output.is_dir():
        raise AmplifyError(f"{output}: is a file; --output names the run's directory")
    others = [p.name for p in output.iterdir() if not p.name.startswith(".")] if output.is_dir() else []
    if others and not description.exists():
        raise AmplifyError(
            f"{output}: holds other files ({', '.join(sorted(others)[:3])}) and no {DESCRIPTION}; choose another "
            "--output"
        )
    output.mkdir(parents=True, exist_ok=True)
    held = run_lock.acquire(output)
    if checkpoint.listing(output):  # before the first checkpoint nothing has been learnt that could be lost
        if differing := differences(read_description(output)["binding"], asked):
            raise AmplifyError(
                f"{output}: was started with different settings:\n  "
                + "\n  ".join(differing)
                + "\nChoose another --output, or use the same settings to continue this run."
            )
        if resume == "never":
            raise AmplifyError(f"{output}: holds checkpoints; --resume never starts in a new --output only")
    write_json(description, {"binding": asked, "settings": run.model_dump(mode="json")})
    stopping.forget_earlier(output)
    watchdog.forget_earlier(output)
    return held


def differences(has: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """A line for each setting that is not the same in both."""
    return [
        f"{key}: the run has {has.get(key)!r}, asked for is {asked.get(key)!r}"
        for key in sorted({*asked, *has})
        if has.get(key) != asked.get(key)
    ]


def read_description(run: Path) -> dict[str, Any]:
    try:
        content = read_json(run / DESCRIPTION)
        return {key: dict(content[key]) for key in ("binding", "settings")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AmplifyError(f"{run / DESCRIPTION}: cannot be read ({error!r}); is {run} a run directory?") from None


def choose_checkpoint(
    checkpoints: Checkpoints, resume: str, asked: dict[str, Any], last_step: int
) -> checkpoint.CheckpointFile | None:
    """The checkpoint to continue from: the newest sound one of the run, else the one that `resume` names, else none.

    So the command that began a run from a checkpoint elsewhere also continues it. Raises AmplifyError for a PATH that
    is no checkpoint, was made with other settings, or is an older one of this run, and for a run that is past
    `last_step`. Damaged ones that were passed over are set aside.
    """
    output, found = checkpoints.run, checkpoints.find()
    if resume not in ("auto", "never"):
        named = Path(resume)
        if not named.is_dir():
            raise AmplifyError(
                f"--resume {resume}: there is no such checkpoint directory; expected auto, never or PATH"
            )
        chosen = checkpoint.open_verified(named)
        differing = [key for key, value in chosen.state["binding"].items() if asked.get(key) != value]
        if differing:
            raise AmplifyError(f"--resume {resume}: was made with other settings: {', '.join(differing)}")
        if found is not None and chosen.step < found.step and named.resolve().parent == found.path.resolve().parent:
            raise AmplifyError(
                f"--resume {resume}: {output} goes on to step {found.step}; to start from an older checkpoint, choose "
                "another --output"
            )
        found = found or chosen
    if found is not None and found.step > last_step:
        raise AmplifyError(f"{output}: has done {found.step} steps, training.steps asks for {last_step}")
    checkpoints.set_damaged_aside()
    return found


def check_origin(origin: Mapping[str, Any] | None, asked: Path | None, output: Path) -> None:
    """AmplifyError if --init-from names other weights than those with which the run began."""
    names = () if asked is None else (str(asked), str(asked.resolve()))  # of a model on the hub, of a path
    if names and (origin is None or origin["path"] not in names):
        began = f"began with the weights of {origin['path']}" if origin else "began with random weights"
        raise AmplifyError(
            f"{output}: {began}, not with those of {asked}. Leave --init-from out to continue it, or "
            "choose another --output."
        )


def check_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """AmplifyError unless `weights` are those of a model with the `expected` shapes."""
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if differing := sorted({name for name, _ in set(found.items()) ^ set(expected.items())}):
        name = differing[0]
        raise AmplifyError(
            f"--init-from {source}: holds the weights of another model: {len(differing)} tensors differ, as {name}: "
            f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}. Choose the recipe of that model."
        )
