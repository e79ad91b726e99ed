"""Write a directory of shards that is either complete or absent, whatever happens during the build.

All files are written to a hidden sibling, `.NAME.partial/`: intermediate results to `work-…/`, finished shards to
`shards/`, which is synced to the disk and renamed to `NAME/` when it is complete. If a build fails or is killed, the
next one continues with what it completed. It first renames `work-…/`, so that processes of the earlier build that
survived on other machines cannot write to it. A lock file in the sibling admits one build at a time; the kernel
releases the lock when its owner dies.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.data.shards import DIGEST, MANIFEST, manifest_digest
from amplify_ds.errors import AmplifyError, advice
from amplify_ds.files import lock, replacing, sha256, sync

_LOCK = "lock"


class Workspace(NamedTuple):
    """shards: the directory that becomes the target. work: intermediate results, reused if this build ends early."""

    shards: Path
    work: Path


def partial_directory(target: Path) -> Path:
    """Return the directory in which `target` is built."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def building(target: Path) -> Iterator[Workspace]:
    """Yield directories to build in; rename `shards` to `target` at the end, or keep `work` after an exception.

    `target` must not exist, or be an empty directory. Raises AmplifyError if another build is writing it.
    """
    with working(target) as workspace:
        with writing(target):
            if target.exists():
                target.rmdir()  # if it has files or is a mount point, fail now and not at the rename, hours later
        yield workspace
        with writing(target):
            sync(workspace.shards)
            workspace.shards.rename(target)
            sync(target.parent)


@contextmanager
def working(target: Path) -> Iterator[Workspace]:
    """Yield directories for building `target` that no other process uses; keep `work` after an exception."""
    partial = partial_directory(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        with writing(partial):
            workspace = Workspace(partial / "shards", partial / f"work-{secrets.token_hex(4)}")
            workspace.shards.mkdir(exist_ok=True)
            for earlier in partial.glob("work-*"):
                earlier.rename(workspace.work)
            workspace.work.mkdir(exist_ok=True)
        try:
            yield workspace
        except BaseException:
            exists = workspace.work.exists()  # if not, it was deleted, and `partial` may belong to another build
            if exists and all(path.suffix == ".json" for path in workspace.work.iterdir()):  # nothing worth keeping
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files that a killed build left beside `target`, which is complete."""
    partial = partial_directory(target)
    if partial.exists():
        with _locked(partial):
            shutil.rmtree(partial, ignore_errors=True)


def write_shard(
    stem: Path, row_tokens: int, tokens: Iterable[bytes], lengths: np.ndarray, row_starts: np.ndarray
) -> dict:
    """Write the three files of a shard, whose names begin with `stem`, and return its entry in the manifest.

    tokens: the padded rows, in blocks of any number of bytes. lengths, row_starts: see `amplify_ds.data.shards`.
    """
    rows = len(row_starts) - 1
    arrays = {
        "tokens": ("|u1", (rows, row_tokens), tokens),
        "lengths": ("<u2", lengths.shape, [lengths.astype("<u2").tobytes()]),
        "row_starts": ("<i8", row_starts.shape, [row_starts.astype("<i8").tobytes()]),
    }
    paths = {kind: stem.with_name(f"{stem.name}.{kind}.npy") for kind in arrays}
    files = {paths[kind].name: _write_array(paths[kind], *array) for kind, array in arrays.items()}
    return {"rows": rows, "segments": len(lengths), "files": files}


def publish_shard(entry: dict, work: Path, shards: Path, number: int) -> dict:
    """Move the files of a shard from `work` to `shards`, if not yet done; return its entry as shard `number`."""
    files = {}
    for name, identity in entry["files"].items():
        published = shards / f"shard-{number:05d}.{name.split('.', 1)[1]}"
        if (work / name).exists():
            with writing(published):
                _move(work / name, published)
        elif not published.exists() or sha256(published) != identity["sha256"]:  # changed by another build
            (work / f"{name.split('.')[0]}.json").unlink(missing_ok=True)
            raise AmplifyError(
                f"{published} is missing or was changed since this build wrote it. Run the same command again: it "
                "writes this shard again and keeps the others."
            )
        files[published.name] = identity
    return entry | {"files": files}


def write_manifest(directory: Path, manifest: dict) -> None:
    """Write manifest.json, including its checksum, with one line per key and per element of a list of objects."""
    manifest = {**manifest, DIGEST: manifest_digest(manifest)}

    def text(value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(f"  {json.dumps(element)}" for element in value) + "\n ]"
        return json.dumps(value)

    lines = [f" {json.dumps(key)}: {text(value)}" for key, value in manifest.items()]
    with writing(directory / MANIFEST):
        (directory / MANIFEST).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")
        sync(directory / MANIFEST)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block (disk full, read-only, no permission) into an AmplifyError that names `path`."""
    try:
        yield
    except OSError as error:
        raise AmplifyError(
            f"cannot write {path}: {error.strerror}. {advice(error.errno)} Completed work is kept; the same command "
            "continues."
        ) from error


def _write_array(file: Path, dtype: str, shape: tuple[int, ...], pieces: Iterable[bytes]) -> dict:
    """Write a .npy file from a stream of bytes; return its size in bytes and its sha256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    digest, size = hashlib.sha256(), 0
    with writing(file):
        with open(file, "xb") as out:
            for piece in chain([header.getvalue()], pieces):
                out.write(piece)
                digest.update(piece)
                size += len(piece)
        sync(file)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _move(file: Path, target: Path) -> None:
    """Rename a file, or copy it atomically if `target` is on another file system."""
    try:
        file.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target) as partial:
            shutil.copyfile(file, partial)
        file.unlink()


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    with writing(partial):
        partial.mkdir(exist_ok=True)
    try:
        with writing(partial / _LOCK):
            held = lock(partial / _LOCK)
        if held is None:
            raise AmplifyError(
                f"another build is writing this directory (its files are in {partial}). Wait until it ends, or choose "
                "another output directory."
            )
        with held:
            yield
    finally:
        with suppress(OSError):
            partial.rmdir()  # on NFS, the open lock file kept this empty directory
