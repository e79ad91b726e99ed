"""Resumable work: results are kept in chunks next to the output until the output is complete.

    OUTPUT.partial/job.json           what is computed, from which sequences, with which model
    OUTPUT.partial/chunk-00000000.npz

A chunk is complete or absent. The same command, run again, computes the missing chunks, writes the output inside the
folder, renames it to OUTPUT and removes the folder. A chunk depends on job.json alone, so the result is that of an
uninterrupted run. The device and --row-tokens may change in between: they affect rounding only.
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
        """Yield the chunks in order, each as an open .npz file that reads an array when it is accessed."""
        for path in sorted(self.folder.glob("chunk-*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                yield arrays

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:08}.npz"


def refuse_existing(output: Path) -> None:
    if output.exists():
        raise AmplifyError(f"{output}: already exists; choose another name, or remove it first")


@contextmanager
def resumable(output: Path, job: dict[str, Any]) -> Iterator[Chunks]:
    """Return the chunks of `job`, new or continued.

    Raises AmplifyError if `output` exists, if the folder has chunks of another job, or if another process writes them.
    """
    refuse_existing(output)
    folder = output.with_name(f"{output.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder_lock := lock(folder / "lock")) is None:
        raise AmplifyError(f"{folder}: another process is writing {output}; wait until it ends, or stop it")
    with folder_lock:
        _check_job(folder, job)
        yield Chunks(folder)
    with suppress(OSError):
        folder.rmdir()  # on NFS the open lock kept the folder that `finish` has emptied


def finish(output: Path, chunks: Chunks, write: Callable[[Path], object]) -> None:
    """Write the output inside the folder of the chunks, rename it to `output` and remove the folder."""
    partial = chunks.folder / f"output{output.suffix}"
    partial.unlink(missing_ok=True)
    write(partial)
    sync(partial)
    refuse_existing(output)
    partial.rename(output)
    sync(output.parent)
    shutil.rmtree(chunks.folder, ignore_errors=True)  # on NFS the open lock stays


def _check_job(folder: Path, job: dict[str, Any]) -> None:
    """Write job.json if there is none. Raises AmplifyError if it describes another job."""
    path = folder / "job.json"
    job = json.loads(json.dumps(job))
    try:
        previous = read_json(path, f". Remove {folder} to start over")
    except FileNotFoundError:
        write_json(path, job)
        return
    if differing := sorted(key for key in previous.keys() | job.keys() if previous.get(key) != job.get(key)):
        changes = ", ".join(f"{key} (was {previous.get(key)}, now {job.get(key)})" for key in differing)
        raise AmplifyError(
            f"{folder}: was started with different settings: {changes}. Use the same settings to continue, choose "
            "another output, or remove this folder to start over"
        )
