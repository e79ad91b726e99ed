"""The run directory: lock it for this job, and check that it belongs to the same configuration.

RUN/run.json      every setting; names, weights and fingerprints of the training data
RUN/checkpoints/  see checkpoint.py
RUN/events/       TensorBoard
RUN/result.json   written after the last step: the run is complete
RUN/stopped.json  stopped on request and saved (stopping.py)
RUN/stalled.json  a rank did not respond (watchdog.py)
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
    """A run directory that this job owns. checkpoints, lock: None except on rank 0."""

    path: Path
    binding: dict[str, Any]  # settings and data that are the same in every job of the run
    checkpoints: Checkpoints | None
    lock: IO[str] | None  # released when this object is deleted


def open_run(output: Path, run: RunConfig, binding: dict[str, Any], resume: str) -> IO[str]:
    """Create or check the run directory; return its lock, to be kept as long as the run writes.

    binding: settings and data that must be the same in every job of the run, `RunConfig.binding` and
    `Mixture.binding`. Raises AmplifyError, and changes nothing, if another process trains there, if the directory
    contains something else, or if the run was started with different settings.
    """
    description = output / DESCRIPTION
    if output.exists() and not output.is_dir():
        raise AmplifyError(f"{output}: is a file; --output must be a directory")
    others = [p.name for p in output.iterdir() if not p.name.startswith(".")] if output.is_dir() else []
    if others and not description.exists():
        raise AmplifyError(
            f"{output}: contains other files ({', '.join(sorted(others)[:3])}) and no {DESCRIPTION}; choose another "
            "--output"
        )
    output.mkdir(parents=True, exist_ok=True)
    held_lock = run_lock.acquire(output)
    if checkpoint.listing(output):  # before the first checkpoint there is nothing to lose
        if differing := differences(read_description(output)["binding"], binding):
            raise AmplifyError(
                f"{output}: was started with different settings:\n  "
                + "\n  ".join(differing)
                + "\nChoose another --output, or use the same settings to continue this run."
            )
        if resume == "never":
            raise AmplifyError(
                f"{output}: contains checkpoints, which --resume never does not continue; choose another --output"
            )
    write_json(description, {"binding": binding, "settings": run.model_dump(mode="json")})
    stopping.forget_earlier(output)
    watchdog.forget_earlier(output)
    return held_lock


def differences(of_run: dict[str, Any], requested: dict[str, Any]) -> list[str]:
    """Return a line for each setting in which the run and the requested settings differ."""
    return [
        f"{key}: the run has {of_run.get(key)!r}, this command has {requested.get(key)!r}"
        for key in sorted({*requested, *of_run})
        if of_run.get(key) != requested.get(key)
    ]


def read_description(run: Path) -> dict[str, Any]:
    """Return "binding" and "settings" of run.json. Raises AmplifyError if it cannot be read."""
    try:
        content = read_json(run / DESCRIPTION)
        return {key: dict(content[key]) for key in ("binding", "settings")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AmplifyError(f"{run / DESCRIPTION}: cannot be read ({error!r}); is {run} a run directory?") from None


def choose_checkpoint(
    checkpoints: Checkpoints, resume: str, binding: dict[str, Any], last_step: int
) -> checkpoint.CheckpointFile | None:
    """Return the checkpoint to continue from: the newest sound one of the run, else the one in `resume`, else None.

    The command that started a run from another run's checkpoint therefore also continues it. Raises AmplifyError if
    the path in `resume` is not a checkpoint, was made with other settings or is an older one of this run, and if the
    run is past `last_step`. Damaged checkpoints that were skipped are renamed.
    """
    output, newest = checkpoints.run, checkpoints.find()
    if resume not in ("auto", "never"):
        named = Path(resume)
        if not named.is_dir():
            raise AmplifyError(
                f"--resume {resume}: no such checkpoint directory; expected auto, never or the path of a checkpoint"
            )
        chosen = checkpoint.open_verified(named)
        differing = [key for key, value in chosen.state["binding"].items() if binding.get(key) != value]
        if differing:
            raise AmplifyError(f"--resume {resume}: was made with other settings: {', '.join(differing)}")
        if newest is not None and chosen.step < newest.step and named.resolve().parent == newest.path.resolve().parent:
            raise AmplifyError(
                f"--resume {resume}: {output} has a newer checkpoint, of step {newest.step}; to start from an older "
                "one, choose another --output"
            )
        newest = newest or chosen
    if newest is not None and newest.step > last_step:
        raise AmplifyError(f"{output}: has done {newest.step} steps, but training.steps is {last_step}; raise it")
    checkpoints.set_damaged_aside()
    return newest


def check_origin(origin: Mapping[str, Any] | None, init_from: Path | None, output: Path) -> None:
    """Raise AmplifyError if --init-from names other weights than those with which the run started."""
    names = () if init_from is None else (str(init_from), str(init_from.resolve()))  # of a model on the hub, of a path
    if names and (origin is None or origin["path"] not in names):
        started = f"started with the weights of {origin['path']}" if origin else "started with random weights"
        raise AmplifyError(
            f"{output}: {started}, not with those of {init_from}. Omit --init-from to continue it, or "
            "choose another --output."
        )


def check_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raise AmplifyError unless `weights` have the names and shapes `expected`."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if differing := sorted({name for name, _ in set(shapes.items()) ^ set(expected.items())}):
        name = differing[0]
        raise AmplifyError(
            f"--init-from {source}: has the weights of another model: {len(differing)} tensors differ, such as {name}: "
            f"expected {expected.get(name, 'none')}, found {shapes.get(name, 'none')}. Choose the recipe of that model."
        )
