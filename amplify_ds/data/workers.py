"""Processes that prepare batches ahead of time, and end: whatever becomes of them, or of the rank that they work for.

A worker ignores SIGTERM and SIGUSR1, which SLURM and DeepSpeed send to every process: the rank needs its workers until
the checkpoint is saved. So nothing but the rank can end them. It does so at the end of the `with` block, however that
is left; multiprocessing would wait for them for ever at the end of the process. If the rank itself is killed, the
kernel kills them. A worker that is killed ends the rank with a message.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from amplify_ds.data.loader import PackedBatch, TrainingBatches
from amplify_ds.errors import AmplifyError
from amplify_ds.processes import belong_to_parent

# What torch says, from a handler of SIGCHLD, of a worker that has ended. It may interrupt the very wait that would have
# told the exit code, which is lost then; so the code is read from here, too.
_OF_A_WORKER = re.compile(
    r"DataLoader worker \(pid(\(s\))? (?P<pid>\d+).*?(signal: (?P<signal>[^.]*)|exit code (?P<code>\d+)|$)", re.DOTALL
)
# What is raised where a worker hands a batch over to its rank, at one side when the other has ended.
_CUT_OFF = (ConnectionError, EOFError)
SECONDS_TO_END = 1.0
_LIKELY = {
    signal.SIGKILL: "probably because memory ran out: fewer --data.workers need less",
    signal.SIGBUS: "probably because /dev/shm is full (df -h /dev/shm): make it larger, or set --data.workers 0",
}


class TrainingLoader:
    """Iterates over the micro batches of one rank from global batch `first_batch` on; to be used in a `with` block.

    workers: processes that prepare batches ahead of time; with 0 they are prepared when they are asked for. Raises
    AmplifyError for a damaged shard, and for a worker that was killed: at the end of the block too, for torch may
    raise its error anywhere in it.
    """

    def __init__(self, batches: TrainingBatches, first_batch: int, workers: int, pin_memory: bool):
        self._order = range(first_batch * batches.split.accumulation, sys.maxsize)
        self._options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}
        self._options["worker_init_fn"] = partial(_belong_to, os.getpid())
        if workers:
            self._options["collate_fn"] = _in_shared_memory
        self._batches, self._count = batches, workers
        self._batch_iterator: Iterator[PackedBatch] | None = None
        self._workers: list[BaseProcess] = []

    def __enter__(self) -> TrainingLoader:
        return self

    def __iter__(self) -> TrainingLoader:
        return self

    def __next__(self) -> PackedBatch:
        if self._batch_iterator is None:
            others = multiprocessing.active_children()
            loader = DataLoader(self._batches, batch_size=None, sampler=self._order, **self._options)
            self._batch_iterator = iter(loader)
            self._workers = [process for process in multiprocessing.active_children() if process not in others]
        try:
            return next(self._batch_iterator)
        except AmplifyError as error:  # that of a worker comes with its traceback in front
            raise AmplifyError(str(error).rpartition("AmplifyError: ")[2].strip()) from None

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        cut_off = isinstance(error, _CUT_OFF)
        if cut_off:  # by a worker that may still be ending
            try:
                ended = connection.wait([process.sentinel for process in self._workers], SECONDS_TO_END)
                for process in self._workers:
                    if process.sentinel in ended:  # its files are closed, its code may be a moment away
                        process.join()
            except RuntimeError as end:  # of torch's handler of SIGCHLD
                error = end
        pids = [process.pid for process in self._workers]
        codes = {process.pid: process.exitcode for process in self._workers if process.exitcode}
        self.close()
        told = _OF_A_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
        if told and not codes:
            codes = {int(told["pid"]): _code_told(told)}
        if told or cut_off:
            for pid, code in codes.items():
                if pid in pids:
                    raise AmplifyError(self._lost(pids.index(pid), pid, code)) from None

    def close(self) -> None:
        """End the workers: those that do not leave when they are asked to (5 seconds each) are killed."""
        iterator, self._batch_iterator = self._batch_iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()  # as its destructor does; an error's traceback may keep it alive
        for process in self._workers:
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []

    def _lost(self, worker: int, pid: int | None, code: int) -> str:
        how = f"ended with code {code}"
        if code < 0:
            killer = signal.Signals(-code)
            likely = _LIKELY.get(killer)
            how = f"was killed by {killer.name}{f', {likely}' if likely else ''}"
        return (
            f"worker {worker} of {self._count} (process {pid}), which prepares batches, {how}. The same "
            "command continues from the newest checkpoint."
        )


def _code_told(told: re.Match) -> int:
    """The exit code of what torch says, negative for a signal."""
    number = next((n for n in signal.Signals if signal.strsignal(n) == told["signal"]), 0)
    return -number if told["signal"] else int(told["code"] or 1)


def _in_shared_memory(batch: PackedBatch) -> PackedBatch:
    """Move a worker's batch to where the rank can read it. Left to the queue between them, a full /dev/shm would be an
    error in a thread of the queue: the batch would be lost, and the rank would wait for it for ever.
    """
    for field in fields(batch):
        if torch.is_tensor(value := getattr(batch, field.name)):
            value.share_memory_()
    return batch


def _belong_to(rank: int, worker: int) -> None:
    belong_to_parent(rank, (signal.SIGTERM, signal.SIGUSR1))
    others = sys.excepthook

    def hook(kind, error, traceback) -> None:
        """A rank that ends while it takes a batch cuts off the thread which hands batches over; the rank says why."""
        if not issubclass(kind, _CUT_OFF):
            others(kind, error, traceback)

    sys.excepthook = hook
