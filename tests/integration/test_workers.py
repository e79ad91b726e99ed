"""A rank with loader workers ends soon in every case, prints the reason and leaves no process behind."""

import os
import resource
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from amplify_ds.training import checkpoint
from tests.support.commands import environment, python
from tests.support.needs import needs_namespaces
from tests.support.paths import ROOT
from tests.support.training import launch_words

PATIENCE = 60  # seconds; if the loader were not closed, these tests would wait for ever


class Running:
    """One rank with two workers, past its first checkpoint."""

    def __init__(self, output, shards):
        settings = {
            "training__steps": 5000,
            "checkpoint__every": 3,
            "data__workers": 2,
            "evaluation__max_rows": 1,
            "watchdog__seconds": 0,
        }
        self.output = output
        self.process = subprocess.Popen(
            launch_words(1, output, shards, 1, **settings),
            cwd=ROOT,
            env=environment(1),
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 10 * PATIENCE
        while not checkpoint.listing(output):
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr.read()
            time.sleep(0.02)
        self.workers = psutil.Process(self.process.pid).children()
        assert len(self.workers) == 2

    def end(self) -> tuple[int, str]:
        """Return exit code and standard error, after checking that the workers have ended too."""
        _, error = self.process.communicate(timeout=PATIENCE)
        _, left = psutil.wait_procs(self.workers, timeout=10)
        assert not left
        assert "Traceback" not in error
        return self.process.returncode, error


@pytest.fixture
def running(shards, tmp_path):
    started = Running(tmp_path / "run", shards)
    yield started
    started.process.kill()
    started.process.wait()


def test_a_killed_worker_ends_the_rank_with_its_reason(running):
    running.workers[1].kill()
    code, error = running.end()
    assert code == 1
    assert f"of 2 (process {running.workers[1].pid}) was killed by SIGKILL" in error
    assert "memory ran out" in error and "The same command continues" in error
    assert error.count("error:") == 1


LOADER = """
import os, socket, sys, time
from multiprocessing import resource_sharer
from amplify_ds.data.loader import BatchSplit, TrainingBatches
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.data.workers import TrainingLoader
from amplify_ds.errors import command
mixture = Mixture([Source("train", 1, Shards(sys.argv[1]))])
batches = TrainingBatches(mixture, BatchSplit(4, 4, 1, 0, 1), 0, 0.15, 0.8, 0.1)
"""
CUT_OFF = """
def main():
    with TrainingLoader(batches, 0, 2, False) as loader:
        next(loader)
        print(loader._workers[1].pid)
        os.kill(loader._workers[1].pid, 9)
        raise ConnectionResetError(104, "Connection reset by peer")  # as the socket would raise it, but rarely does
command(main)
"""


def test_a_batch_that_a_killed_worker_had_left_names_it_too(shards):
    result = python("-c", LOADER + CUT_OFF, shards["train"])
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    pid = result.stdout.strip()
    assert f"worker 1 of 2 (process {pid}) was killed by SIGKILL" in result.stderr


HUNG_UP = """
def hang_up(ident):
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(ident[0])
    time.sleep(1)
    raise ValueError("the reason why the rank ends")
def main():
    with TrainingLoader(batches, 0, 2, False) as loader:
        resource_sharer._ResourceSharer.get_connection = staticmethod(hang_up)
        next(loader)
main()
"""


def test_only_the_rank_prints_a_traceback_if_it_ends_while_it_takes_a_batch(shards):
    result = python("-c", LOADER + HUNG_UP, shards["train"])
    assert result.stderr.count("Traceback") == 1 and "the reason why the rank ends" in result.stderr, result.stderr


def test_a_request_to_stop(running):
    for process in (running.process, *running.workers):  # as SLURM does
        process.send_signal(signal.SIGTERM)
    code, error = running.end()
    assert code == 75 and "the same command continues" in error


def test_an_interruption_while_a_worker_stands_still(running):
    running.workers[0].suspend()
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130


def test_a_disk_that_fills_up(running):
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    code, error = running.end()
    assert code == 1 and "could not be written" in error


def test_a_run_directory_that_is_removed(running):
    """The next checkpoint creates it again, so that the training so far is not lost."""
    shutil.rmtree(running.output, ignore_errors=True)
    deadline = time.monotonic() + PATIENCE
    while not checkpoint.listing(running.output):
        assert running.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.end()[0] == 75


def test_a_killed_rank(running):
    running.process.kill()
    assert running.end()[0] == -signal.SIGKILL


@needs_namespaces
def test_a_shared_memory_that_is_too_small(shards, tmp_path):
    """Workers pass batches through /dev/shm; containers often have 64 MB of it, here it is 64 kB."""
    command = launch_words(1, tmp_path / "run", shards, 1, data__workers=2, watchdog__seconds=0)
    small = [
        "unshare",
        "--mount",
        "bash",
        "-c",
        'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"',
        "bash",
        *command,
    ]
    result = subprocess.run(small, cwd=ROOT, env=environment(1), text=True, capture_output=True, timeout=5 * PATIENCE)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "/dev/shm" in result.stderr and "set --data.workers 0" in result.stderr
