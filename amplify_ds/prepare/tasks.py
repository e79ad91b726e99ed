"""Run tasks whose results are files, in parallel and on several machines, each task once.

A task is a pure function of its arguments that writes files and returns a description of them. Its result is stored as
`STAGE-ID.json`, complete or absent, where ID is a hash of everything the task depends on. So a task whose result exists
need not run again; a process that is killed loses only the tasks it was running; and processes on n machines that share
the directory each take every n-th task, and see from the files when all are done.
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
_POLL_SECONDS = 0.2
_shared: tuple[Any, Any]  # in a worker: the totals that it adds progress to, and the event that stops it


class Task(NamedTuple):
    """Work that any process can do: `run(stem, progress)` writes files whose names begin with `stem` and a dot.

    depends: everything that the result depends on, as JSON. size: approximately what `run` reports to `progress`.
    """

    depends: Any
    size: int
    run: Callable[[Path, Progress], dict]


class Workers(NamedTuple):
    """What runs the tasks: this process or a pool of processes, on one of several ranks that share the directory."""

    rank: Rank
    pool: ProcessPoolExecutor | None
    progress: Any  # of a pool: the size and residues that its processes have done and the bar does not show yet
    check: Callable[[], None]  # raises AmplifyError if another rank has failed


class _Stopped(Exception):
    pass


@contextmanager
def start_workers(count: int, rank: Rank = Rank(0, 1), check: Callable[[], None] = lambda: None) -> Iterator[Workers]:
    """Start `count` worker processes, none if it is 1; they end with this process, even if it is killed."""
    with sigterm_interrupts():
        if count == 1:
            yield Workers(rank, None, None, check)
            return
        spawn = multiprocessing.get_context("spawn")
        progress, stop = spawn.Array("q", 2), spawn.Event()
        with process_pool(count, _set_shared, (progress, stop)) as pool:
            try:
                yield Workers(rank, pool, progress, check)
            finally:
                stop.set()


def run_tasks(stage: str, tasks: Sequence[Task], directory: Path, workers: Workers, unit: str) -> list[dict]:
    """Return the results of all tasks in order: run this rank's share of those without a result, wait for the rest."""
    do_tasks(stage, tasks, directory, workers, unit)
    results = [_result(stem) for stem in _stems(stage, tasks, directory)]
    while missing := [path for path in results if not path.exists()]:
        workers.check()
        time.sleep(_POLL_SECONDS * min(len(missing), 10))
    return [json.loads(path.read_bytes()) for path in results]


def do_tasks(stage: str, tasks: Sequence[Task], directory: Path, workers: Workers, unit: str) -> None:
    """Run this rank's share of the tasks that have no result yet."""
    stems = _stems(stage, tasks, directory)
    if workers.rank.number == 0:
        _remove_others(directory, stage, {stem.name for stem in stems})
    assigned = list(zip(stems, tasks))[workers.rank.number :: workers.rank.world]
    remaining = [(stem, task) for stem, task in assigned if not _result(stem).exists()]
    with bars.bar(total=sum(task.size for _, task in remaining), desc=stage, unit=unit, unit_scale=True) as bar:
        meter = _Meter(bar, workers.check)
        if workers.pool is None:
            for stem, task in remaining:
                _run(stem, task, meter.update)
        else:
            _run_in_pool(workers.pool, workers.progress, remaining, meter)


class _Meter:
    """Updates a bar with the size of the work done, and shows residues per second."""

    def __init__(self, bar: tqdm, check: Callable[[], None]) -> None:
        self._bar, self._check, self._residues, self._started = bar, check, 0, time.perf_counter()

    def update(self, amount: int, residues: int = 0) -> None:
        self._check()
        self._residues += residues
        rate = self._residues / (time.perf_counter() - self._started)
        self._bar.set_postfix_str(f"{rate / 1e6:.1f} million residues/s", refresh=False)
        self._bar.update(amount)


def _run_in_pool(pool: ProcessPoolExecutor, progress: Any, tasks: Sequence[tuple[Path, Task]], meter: _Meter) -> None:
    pending = {pool.submit(_run, stem, task) for stem, task in tasks}
    while pending:
        done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            future.result()
        with progress.get_lock():
            amounts, progress[:] = progress[:], [0, 0]
        meter.update(*amounts)


def _run(stem: Path, task: Task, progress: Progress | None = None) -> None:
    """Run a task and store its result; a task that fails leaves no files."""
    gc.disable()  # there are millions of small objects without cycles; collection would take a fifth of the time
    try:
        _remove(stem)
        result = task.run(stem, progress or _add_progress)
        with writing(_result(stem)):
            write_json(_result(stem), result)
    except BaseException:
        _remove(stem)
        raise
    finally:
        gc.enable()


def _set_shared(progress: Any, stop: Any) -> None:
    """Initialise a worker with what it shares with the command."""
    global _shared
    _shared = progress, stop


def _add_progress(amount: int, residues: int = 0) -> None:
    progress, stop = _shared
    if stop.is_set():
        raise _Stopped
    with progress.get_lock():
        progress[0] += amount
        progress[1] += residues


def _remove_others(directory: Path, stage: str, names: set[str]) -> None:
    """Remove what an earlier build with other inputs or settings has left of this stage; names: those to keep."""
    for name in {path.name.split(".")[0] for path in directory.glob(f"{stage}-*")} - names:
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
    """Return a hash of a JSON value, 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]
