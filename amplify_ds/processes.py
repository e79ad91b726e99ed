"""Worker processes that end with the command that started them, a SIGTERM that ends it as Ctrl-C does, a free port."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from amplify_ds.errors import AmplifyError

_PR_SET_PDEATHSIG = 1


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


def end_with_parent() -> None:
    """From now on the kernel kills this process when its parent has ended, however that does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that nothing holds at the moment; "" asks for all interfaces."""
    with socket.socket() as found:
        found.bind((address, 0))
        return found.getsockname()[1]


def _enter(parent: int, enter: Callable[..., object] | None, arguments: tuple) -> None:
    """What a worker does first: leave signals to the command alone, but end with it, also if it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    if enter:
        enter(*arguments)
