"""Atomic writes, which survive a kill or a power cut; locks, released when their owner dies; checksums."""

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
_LOCK_RETRY_SECONDS = 0.2


def sync(path: Path) -> None:
    """Flush the content of a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; at the end of the block, flush it and rename it to `path`.

    If the block fails, the temporary file is removed and `path` stays as it was.
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
    """Open and lock `path`, creating it if necessary; return the file, or None if another process holds the lock.

    Waits up to `wait_seconds` for the lock. Also returns None if the file was removed meanwhile. The kernel releases
    the lock when the file is closed, so also when its owner dies; on NFS it works across machines. Raises OSError if
    the file cannot be created or locked.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "a", encoding="utf-8"))
            _acquire(file, time.monotonic() + wait_seconds)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return None  # another process may hold a new file of that name
        except (BlockingIOError, FileNotFoundError):
            return None
        stack.pop_all()
    return file


def _acquire(file: IO[str], deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held by another process, or a temporary failure of the file server
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOCK_RETRY_SECONDS)


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


@contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Give the file that the block writes to `path` the permissions of any new file, according to the umask.

    safetensors writes files with mode 0600 whatever the umask, which colleagues could not read.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def forget_cached(path: Path) -> None:
    """Ask the kernel to drop a flushed file from its cache, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def content_digest(content: Mapping[str, Any], entry: str) -> str:
    """Return the sha256 of a JSON object without its entry `entry`, which stores this checksum.

    It depends on the values only, not on the order of the keys or on white space.
    """
    kept = {key: value for key, value in content.items() if key != entry}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def sha256(path: Path, progress: Callable[[int], object] = lambda read: None) -> str:
    """Return the sha256 of a file. `progress` is called with the number of bytes of each block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()
