"""Files that are complete or as they were, also after a kill or a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_BLOCK = 2**20


def sync(path: Path) -> None:
    """Flush a file's content, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; at the end of the block it is flushed and renamed over `path`.

    If the block fails it is removed, and `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, content: Any) -> None:
    """Complete, or as it was."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


@contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Let the block write `path` and give it the permissions of any new file, as the umask and the directory have it.

    safetensors writes 0600 whatever the umask: colleagues could not read the file.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def forget_cached(path: Path) -> None:
    """Ask the kernel to drop its copy of a file that has been flushed, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def content_digest(content: Mapping[str, Any], entry: str) -> str:
    """Return the sha256 of a JSON object without its entry `entry`, which is where the object keeps this checksum.

    It is that of the values, not of the text: another order of the keys or other blanks change nothing.
    """
    kept = {key: value for key, value in content.items() if key != entry}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def sha256(path: Path, progress: Callable[[int], object] = lambda read: None) -> str:
    """Return the checksum of a file; `progress` is called with the number of bytes of each block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()
