"""Work that a kill cannot undo: chunks beside the output, each complete or absent, then the output in one rename.

    OUTPUT.partial/job.json           what is being computed, of what, by which model
    OUTPUT.partial/chunk-00000000.npz

The same command finds the folder, computes the chunks that are missing, writes the output inside the folder, renames it
to OUTPUT and removes the folder. A chunk depends on job.json alone, so the result is that of an undisturbed run (device
and --row-tokens may change on the way: they alter the rounding, nothing else).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.files import lock, replacing, sync, write_json
from amplify_ds.structured import read_json


class Chunks:
    """The chunks of one job, numbered from 0; each is {name: array}."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, number: int) -> bool:
        return self._path(number).exists()

    def write(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        with replacing(self._path(number)) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle

    def read(self) -> Iterator[Any]:
        """Each chunk in order, as numpy opens it: an array is read when it is asked for."""
        for path in sorted(self.folder.glob("chunk-*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                yield arrays

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:08}.npz"


def refuse_existing(output: Path) -> None:
    if output.exists():
        raise AmplifyError(f"{output}: exists already; choose another name, or remove it first")


@contextmanager
def resumable(output: Path, job: dict[str, Any]) -> Iterator[Chunks]:
    """The chunks of `job`, new or continued. Raises AmplifyError when `output` exists or something else was begun."""
    refuse_existing(output)
    folder = output.with_name(f"{output.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    if (held := lock(folder / "lock")) is None:
        raise AmplifyError(f"{folder}: another process is at work on {output}; wait for it, or end it")
    with held:
        _same_job(folder, job)
        yield Chunks(folder)
    with suppress(OSError):
        folder.rmdir()  # empty after `finish`, but on NFS the open lock has kept it


def finish(output: Path, chunks: Chunks, write: Callable[[Path], object]) -> None:
    """Let `write` make the output inside the chunks' folder, give it its name, remove the folder."""
    partial = chunks.folder / f"output{output.suffix}"
    partial.unlink(missing_ok=True)
    write(partial)
    sync(partial)
    refuse_existing(output)
    partial.rename(output)
    sync(output.parent)
    shutil.rmtree(chunks.folder, ignore_errors=True)  # the output is there; on NFS the open lock stays


def _same_job(folder: Path, job: dict[str, Any]) -> None:
    path = folder / "job.json"
    job = json.loads(json.dumps(job))
    try:
        begun = read_json(path, f". Remove {folder} to begin anew")
    except FileNotFoundError:
        write_json(path, job)
        return
    if differing := sorted(key for key in begun.keys() | job.keys() if begun.get(key) != job.get(key)):
        changes = ", ".join(f"{key} (was {begun.get(key)}, now {job.get(key)})" for key in differing)
        raise AmplifyError(
            f"{folder}: was begun with something else: {changes}. Give the same again to continue, choose another "
            "output, or remove this folder to begin anew"
        )
