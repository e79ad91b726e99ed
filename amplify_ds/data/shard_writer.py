"""Write a directory of shards that is complete or absent, whatever happens on the way.

Everything goes to a hidden sibling, `.NAME.partial/`, is synced to the disk, and the sibling is renamed to `NAME/` when
all of it is there. A build that fails removes the sibling; one that is killed leaves it to the next build, which
removes it. A lock on a file in the sibling admits one build at a time; the kernel drops it when its owner dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from amplify_ds.data.shards import DIGEST, MANIFEST, manifest_digest
from amplify_ds.errors import AmplifyError
from amplify_ds.files import sync

_LOCK = "lock"


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Yield an empty directory; at the end of the block it becomes `target`, after an exception it is removed.

    `target` must not exist, or be an empty directory. AmplifyError if another build into it is under way.
    """
    partial = target.with_name(f".{target.name}.partial")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rmdir()  # fails at once for what the rename would fail for hours later: files in it, a mount point
    with _locked(partial):
        try:
            _clear(partial)
            yield partial
            with writing(target):
                sync(partial)
                partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        with writing(target):
            (target / _LOCK).unlink()
            sync(target)
            sync(target.parent)


def write_shard(
    directory: Path, number: int, row_tokens: int, tokens: Iterable[bytes], lengths: np.ndarray, row_starts: np.ndarray
) -> dict:
    """Write the three files of a shard and return its entry in the manifest.

    tokens: the rows, padded, in pieces of any number of bytes. lengths, row_starts: see `amplify_ds.data.shards`.
    """
    stem, rows = f"shard-{number:05d}", len(row_starts) - 1
    arrays = {
        f"{stem}.tokens.npy": ("|u1", (rows, row_tokens), tokens),
        f"{stem}.lengths.npy": ("<u2", lengths.shape, [lengths.astype("<u2").tobytes()]),
        f"{stem}.row_starts.npy": ("<i8", row_starts.shape, [row_starts.astype("<i8").tobytes()]),
    }
    files = {name: _write_array(directory / name, *array) for name, array in arrays.items()}
    return {"rows": rows, "segments": len(lengths), "files": files}


def write_manifest(directory: Path, manifest: dict) -> None:
    """Write manifest.json with its own checksum: JSON with one key, and one element of a list of objects, a line."""
    manifest = {**manifest, DIGEST: manifest_digest(manifest)}

    def text(value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(f"  {json.dumps(element)}" for element in value) + "\n ]"
        return json.dumps(value)

    lines = [f" {json.dumps(key)}: {text(value)}" for key, value in manifest.items()]
    with writing(directory / MANIFEST), open(directory / MANIFEST, "x", encoding="ascii") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk in the block (full, read-only, no permission) into an AmplifyError naming `path`."""
    try:
        yield
    except OSError as error:
        raise AmplifyError(
            f"cannot write {path}: {error.strerror}. Nothing incomplete is left there; make room or "
            "choose another place, and run the same command again."
        ) from error


def _write_array(file: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[bytes]) -> dict:
    """Write a .npy file of which only the shape is known beforehand; return its size in bytes and its sha256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    digest, size = hashlib.sha256(), 0
    with writing(file), open(file, "xb") as out:
        for piece in chain([header.getvalue()], pieces):
            out.write(piece)
            digest.update(piece)
            size += len(piece)
        out.flush()
        os.fsync(out.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    busy = AmplifyError(
        f"another build is writing this directory (its files are in {partial}). Wait until it has "
        "ended, or choose another output directory."
    )
    with writing(partial):
        partial.mkdir(exist_ok=True)
    try:
        lock = open(partial / _LOCK, "a")
    except FileNotFoundError:  # the other build has ended since the line above
        raise busy from None
    with lock:
        if not _take(lock, partial / _LOCK):
            raise busy
        yield


def _take(lock: IO, path: Path) -> bool:
    """Lock an open file, unless somebody else holds it; also false if it no longer is the file at `path`."""
    with writing(path):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            return False


def _clear(partial: Path) -> None:
    """Remove what a killed build has left."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
