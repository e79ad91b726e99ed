"""Processes: workers that end with the command that started them, a SIGTERM that ends it as Ctrl-C does, memory
that is kept.
"""

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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_PR_SET_PDEATHSIG = 1


MOST_WORKERS = 1024  # processes that a command starts at most


def check_workers(option: str, count: int) -> None:
    """AmplifyError unless this many processes can be asked for."""
    if not 1 <= count <= MOST_WORKERS:
        raise AmplifyError(f"{option} is {count}, expected 1 to {MOST_WORKERS}.")


@contextmanager
def process_pool(
    count: int, enter: Callable[..., object] | None = None, arguments: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `count` processes, each of which first calls `enter(*arguments)`; AmplifyError if one dies."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, initializer=_enter, initargs=(os.getpid(), enter, arguments))
    try:
        yield pool
    except (BrokenProcessPool, MemoryError):
        raise AmplifyError(
            "a worker was killed, perhaps because memory ran out. What was complete is kept: run the same command "
            "again, with fewer --workers or smaller --shard-megabytes if it happens again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM, which clusters send, raise KeyboardInterrupt: what is begun is cleaned up, children are ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(parent: int | None = None) -> None:
    """From now on the kernel kills this process when its parent has ended, however that does.

    parent: its pid, where it may have ended before this; then this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent not in (None, os.getppid()):
        os._exit(1)


def belong_to_parent(parent: int, ignored: Iterable[signal.Signals]) -> None:
    """What a worker does first: leave these signals to its parent alone, but end with it, also if it is killed."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(parent)


def keep_freed_memory() -> None:
    """Let glibc use again what was freed, also in pieces of more than 32 MB, which it would give back to the kernel.

    A training step frees hundreds of such pieces, and fetched anew each page is cleared first: on two cores that cost a
    tenth of a step at the 120M's width (docs/benchmarks.md). Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _enter(parent: int, enter: Callable[..., object] | None, arguments: tuple) -> None:
    belong_to_parent(parent, (signal.SIGINT, signal.SIGTERM))
    if enter:
        enter(*arguments)
