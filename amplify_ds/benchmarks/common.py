"""Helpers shared by the benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> int:
    """Return the number of visible GPUs."""
    import torch  # takes a second or two

    return torch.cuda.device_count()


@contextmanager
def one_core() -> Iterator[None]:
    """Restrict this process to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def on_one_core(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes on one core."""
    with one_core():
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


def table(lines: list[tuple[str, str]]) -> str:
    """Return names and values in two columns."""
    return "\n".join(f"{name:<50}{value}" for name, value in lines)
