"""Files that are complete or as they were, also after a kill or a power cut; locks that end with their owner."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_BLOCK = 2**20
_SECONDS_BETWEEN_TRIES = 0.2  # to lock a file


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


def lock(path: Path, wait_seconds: float = 0.0) -> IO[str] | None:
    """Return `path`, made if need be, open and locked; None if another process holds it or has removed it.

    One that holds it is waited for. The kernel frees the lock when the file is closed, so also when its owner dies; NFS
    keeps it among machines. Raises OSError where the file cannot be made or locked.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a", encoding="utf-8"))
            _take(file, time.monotonic() + wait_seconds)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return None  # somebody may hold the next one of that name
        except (BlockingIOError, FileNotFoundError):
            return None
        stack.pop_all()
    return file


def _take(file: IO[str], deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, or the file server is not well for a moment
            if time.monotonic() >= deadline:
                raise
        time.sleep(_SECONDS_BETWEEN_TRIES)


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
