"""Work in tasks whose results are files: parallel, over machines too, and never done twice.

A task is a pure function of its arguments that writes files of its own and returns what is to be said of them. Its
result is stored as `STAGE-ID.json`, complete or absent, where ID is a hash of all that the task depends on. So a task
whose result is there needs not be done; a process that was killed has lost the tasks that it was at; and processes on
several machines that share the directory each take every n-th task, and know from the files when all are done.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from amplify_ds import bars
from amplify_ds.data.shard_writer import writing
from amplify_ds.files import write_json
from amplify_ds.prepare.build_ranks import Rank
from amplify_ds.processes import process_pool, sigterm_interrupts

Progress = Callable[..., object]  # (amount of the task's size just done, residues among it)
_SECONDS_BETWEEN_LOOKS = 0.2
_shared: tuple[Any, Any]  # in a worker: what it tells the command, and when it stops


class Task(NamedTuple):
    """Work that can be done anywhere: `run(stem, progress)` writes files whose names are `stem` and a dot and more.

    depends: all that the result depends on, as JSON. size: about what it will tell `progress`.
    """

    depends: Any
    size: int
    run: Callable[[Path, Progress], dict]


class Workers(NamedTuple):
    """Who does the work: this process or a pool of them, as one of several ranks that share the directory."""

    rank: Rank
    pool: ProcessPoolExecutor | None
    told: Any  # of a pool: the size and the residues of which its processes told, not yet shown
    check: Callable[[], None]  # raises AmplifyError when another rank has failed


class _Stopped(Exception):
    pass


@contextmanager
def workers(count: int, rank: Rank = Rank(0, 1), check: Callable[[], None] = lambda: None) -> Iterator[Workers]:
    """Start processes, unless one is enough; whatever ends this one, Ctrl-C or SIGTERM or SIGKILL, ends them too."""
    with sigterm_interrupts():
        if count == 1:
            yield Workers(rank, None, None, check)
            return
        spawn = multiprocessing.get_context("spawn")
        told, stop = spawn.Array("q", 2), spawn.Event()
        with process_pool(count, _share, (told, stop)) as pool:
            try:
                yield Workers(rank, pool, told, check)
            finally:
                stop.set()


def run_tasks(stage: str, tasks: Sequence[Task], directory: Path, crew: Workers, unit: str) -> list[dict]:
    """Do what is not done yet, wait for what others do, and return all results in order."""
    do_tasks(stage, tasks, directory, crew, unit)
    results = [_result(stem) for stem in _stems(stage, tasks, directory)]
    while missing := [path for path in results if not path.exists()]:
        crew.check()
        time.sleep(_SECONDS_BETWEEN_LOOKS * min(len(missing), 10))
    return [json.loads(path.read_bytes()) for path in results]


def do_tasks(stage: str, tasks: Sequence[Task], directory: Path, crew: Workers, unit: str) -> None:
    """Do this process's part of what is not done yet."""
    stems = _stems(stage, tasks, directory)
    if crew.rank.number == 0:
        _remove_others(directory, stage, {stem.name for stem in stems})
    assigned = list(zip(stems, tasks))[crew.rank.number :: crew.rank.world]
    mine = [(stem, task) for stem, task in assigned if not _result(stem).exists()]
    with bars.bar(total=sum(task.size for _, task in mine), desc=stage, unit=unit, unit_scale=True) as bar:
        meter = _Meter(bar, crew.check)
        if crew.pool is None:
            for stem, task in mine:
                _do(stem, task, meter.tell)
        else:
            _do_in_pool(crew.pool, crew.told, mine, meter)


class _Meter:
    """A bar that follows the size of tasks and says how many residues per second go by."""

    def __init__(self, bar: tqdm, check: Callable[[], None]) -> None:
        self._bar, self._check, self._residues, self._began = bar, check, 0, time.perf_counter()

    def tell(self, amount: int, residues: int = 0) -> None:
        self._check()
        self._residues += residues
        rate = self._residues / (time.perf_counter() - self._began)
        self._bar.set_postfix_str(f"{rate / 1e6:.1f} million residues/s", refresh=False)
        self._bar.update(amount)


def _do_in_pool(pool: ProcessPoolExecutor, told: Any, tasks: Sequence[tuple[Path, Task]], meter: _Meter) -> None:
    pending = {pool.submit(_do, stem, task) for stem, task in tasks}
    while pending:
        done, pending = wait(pending, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
        for future in done:
            future.result()
        with told.get_lock():
            amounts, told[:] = told[:], [0, 0]
        meter.tell(*amounts)


def _do(stem: Path, task: Task, progress: Progress | None = None) -> None:
    """Do a task and store its result; a task that fails leaves nothing."""
    gc.disable()  # millions of small objects and no cycles: to look for some would take a fifth of the time
    try:
        _remove(stem)
        result = task.run(stem, progress or _tell)
        with writing(_result(stem)):
            write_json(_result(stem), result)
    except BaseException:
        _remove(stem)
        raise
    finally:
        gc.enable()


def _share(told: Any, stop: Any) -> None:
    """Keep, in a worker, what it shares with the command."""
    global _shared
    _shared = told, stop


def _tell(amount: int, residues: int = 0) -> None:
    told, stop = _shared
    if stop.is_set():
        raise _Stopped
    with told.get_lock():
        told[0] += amount
        told[1] += residues


def _remove_others(directory: Path, stage: str, wanted: set[str]) -> None:
    """Remove what an earlier build with other inputs or settings has left of this stage."""
    for name in {path.name.split(".")[0] for path in directory.glob(f"{stage}-*")} - wanted:
        _remove(directory / name)


def _remove(stem: Path) -> None:
    """Remove all files of a task, its result first."""
    _result(stem).unlink(missing_ok=True)
    for path in stem.parent.glob(f"{stem.name}.*"):
        path.unlink()


def _stems(stage: str, tasks: Sequence[Task], directory: Path) -> list[Path]:
    return [directory / f"{stage}-{digest(task.depends)}" for task in tasks]


def _result(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")


def digest(depends: Any) -> str:
    """Of JSON, in 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]
