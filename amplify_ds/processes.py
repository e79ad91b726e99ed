"""Pools of worker processes that end with their parent, SIGTERM handled as Ctrl-C, and reuse of freed memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from amplify_ds.errors import AmplifyError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_PR_SET_PDEATHSIG = 1


MOST_WORKERS = 1024


def check_workers(option: str, count: int) -> None:
    """Raise AmplifyError unless `count` is from 1 to `MOST_WORKERS`."""
    if not 1 <= count <= MOST_WORKERS:
        raise AmplifyError(f"{option} is {count}, expected 1 to {MOST_WORKERS}.")


@contextmanager
def process_pool(
    count: int, enter: Callable[..., object] | None = None, arguments: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `count` processes, each of which first calls `enter(*arguments)`.

    Raises AmplifyError if one of them dies.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, initializer=_enter, initargs=(os.getpid(), enter, arguments))
    try:
        yield pool
    except (BrokenProcessPool, MemoryError):
        raise AmplifyError(
            "a worker was killed, perhaps because memory ran out. Completed work is kept: run the same command again, "
            "with fewer --workers or smaller --shard-megabytes if this is repeated."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM, which clusters send, raise KeyboardInterrupt, so that files and children are cleaned up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(parent: int | None = None) -> None:
    """Make the kernel kill this process when its parent ends, for whatever reason.

    parent: its process id. If that process is no longer the parent, exit now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent not in (None, os.getppid()):
        os._exit(1)


def belong_to_parent(parent: int, ignored: Iterable[signal.Signals]) -> None:
    """Set up a worker: ignore the signals in `ignored`, which its parent handles, and end with the parent."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def keep_freed_memory() -> None:
    """Make glibc reuse freed blocks of more than 32 MB instead of returning them to the kernel.

    A training step frees hundreds of such blocks, and the kernel clears every page that it hands out again: on two
    cores that cost a tenth of a step at the 120M's width (docs/benchmarks.md). Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _enter(parent: int, enter: Callable[..., object] | None, arguments: tuple) -> None:
    belong_to_parent(parent, (signal.SIGINT, signal.SIGTERM))
    if enter:
        enter(*arguments)
