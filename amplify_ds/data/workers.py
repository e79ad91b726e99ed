"""Worker processes that prepare batches ahead of time, and that end in every case.

A worker ignores SIGTERM and SIGUSR1, which SLURM and DeepSpeed send to every process, because the rank needs its
workers until the checkpoint is saved. So only the rank can end them. It does so at the end of the `with` block, also
after an exception; otherwise multiprocessing would wait for them for ever when the process exits. If the rank is
killed, the kernel kills its workers. If a worker is killed, the rank ends with a message.
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

# The error that torch raises in its handler of SIGCHLD when a worker has ended. It may interrupt the wait that would
# have returned the exit code, which is then lost; so the code is parsed from the message, too.
_WORKER_ENDED = re.compile(
    r"DataLoader worker \(pid(\(s\))? (?P<pid>\d+).*?(signal: (?P<signal>[^.]*)|exit code (?P<code>\d+)|$)", re.DOTALL
)
# Raised while a worker passes a batch to its rank, on one side, if the other side has ended.
_BROKEN_PIPE = (ConnectionError, EOFError)
SECONDS_TO_END = 1.0
_PROBABLE_CAUSES = {
    signal.SIGKILL: "probably because memory ran out: set fewer --data.workers",
    signal.SIGBUS: "probably because /dev/shm is full (df -h /dev/shm): make it larger, or set --data.workers 0",
}


class TrainingLoader:
    """Iterate over the micro batches of one rank, starting with global batch `first_batch`. Use it in a `with` block.

    workers: number of processes that prepare batches ahead of time; 0 prepares each batch when it is needed. Raises
    AmplifyError if a shard is damaged or a worker was killed; the latter also at the end of the block, because torch
    may raise its error anywhere in it.
    """

    def __init__(self, batches: TrainingBatches, first_batch: int, workers: int, pin_memory: bool):
        self._order = range(first_batch * batches.split.accumulation, sys.maxsize)
        self._options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin_memory}
        self._options["worker_init_fn"] = partial(_init_worker, os.getpid())
        if workers:
            self._options["collate_fn"] = _to_shared_memory
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
        except AmplifyError as error:  # DataLoader puts the traceback of a worker before its message
            raise AmplifyError(str(error).rpartition("AmplifyError: ")[2].strip()) from None

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        broken_pipe = isinstance(error, _BROKEN_PIPE)
        if broken_pipe:  # the worker may still be exiting
            try:
                ended = connection.wait([process.sentinel for process in self._workers], SECONDS_TO_END)
                for process in self._workers:
                    if process.sentinel in ended:  # its files are closed; wait for its exit code
                        process.join()
            except RuntimeError as worker_error:  # from torch's handler of SIGCHLD
                error = worker_error
        pids = [process.pid for process in self._workers]
        codes = {process.pid: process.exitcode for process in self._workers if process.exitcode}
        self.close()
        match = _WORKER_ENDED.search(str(error)) if isinstance(error, RuntimeError) else None
        if match and not codes:
            codes = {int(match["pid"]): _exit_code(match)}
        if match or broken_pipe:
            for pid, code in codes.items():
                if pid in pids:
                    raise AmplifyError(self._describe_loss(pids.index(pid), pid, code)) from None

    def close(self) -> None:
        """End the workers; kill those that do not exit within 5 seconds each."""
        iterator, self._batch_iterator = self._batch_iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()  # as in its destructor, which may not run while a traceback refers to it
        for process in self._workers:
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []

    def _describe_loss(self, worker: int, pid: int | None, code: int) -> str:
        outcome = f"exited with code {code}"
        if code < 0:
            killer = signal.Signals(-code)
            cause = _PROBABLE_CAUSES.get(killer)
            outcome = f"was killed by {killer.name}{f', {cause}' if cause else ''}"
        return (
            f"data worker {worker} of {self._count} (process {pid}) {outcome}. The same command continues from the "
            "newest checkpoint."
        )


def _exit_code(match: re.Match) -> int:
    """Return the exit code in torch's message; negative for a signal."""
    number = next((n for n in signal.Signals if signal.strsignal(n) == match["signal"]), 0)
    return -number if match["signal"] else int(match["code"] or 1)


def _to_shared_memory(batch: PackedBatch) -> PackedBatch:
    """Move a batch to shared memory, in the worker's main thread.

    The queue would do it in a thread of its own, where a full /dev/shm would lose the batch, and the rank would wait
    for it for ever.
    """
    for field in fields(batch):
        if torch.is_tensor(value := getattr(batch, field.name)):
            value.share_memory_()
    return batch


def _init_worker(rank: int, worker: int) -> None:
    belong_to_parent(rank, (signal.SIGTERM, signal.SIGUSR1))
    previous = sys.excepthook

    def hook(kind, error, traceback) -> None:
        """Hide the broken pipe of a worker whose rank has ended; the rank reports the reason."""
        if not issubclass(kind, _BROKEN_PIPE):
            previous(kind, error, traceback)

    sys.excepthook = hook
