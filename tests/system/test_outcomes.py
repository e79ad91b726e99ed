"""The table of outcomes of docs/cluster.md: each row under ssh and under SLURM, on two nodes of one machine.

The exit code is the same under both, and soon no process of the job is left on any node.
"""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from amplify_ds.training import checkpoint
from tests.support.commands import environment
from tests.support.needs import needs_environment, needs_namespaces, needs_nodes, needs_slurm
from tests.support.nodes import loopback_nodes
from tests.support.paths import ROOT
from tests.support.slurm import ENDED, GPUS_AND_CORES
from tests.support.training import SMALL

pytestmark = [pytest.mark.slow, needs_environment, needs_nodes, needs_slurm, needs_namespaces]
SECONDS_TO_END = 30  # until no process is left on any node, once the job has ended
PATIENCE = 300  # seconds for what a test waits for
LONG = 5000  # steps that no test waits for

# Imported by every Python process: makes steps slower, and one rank fail.
PATCH = """
import os, time
if "LOCAL_RANK" in os.environ:
    from amplify_ds.data.loader import TrainingBatches
    read = TrainingBatches.__getitem__
    def slow(self, index):
        time.sleep(0.1)
        if os.environ["RANK"] == "1" and index >= 8 and os.path.exists(os.path.dirname(__file__) + "/failing"):
            raise OSError(28, "No space left on device", "/some/file")
        return read(self, index)
    TrainingBatches.__getitem__ = slow
"""


class Job:
    """A job of two nodes with a rank each. Subclasses start it, and can lose its second machine."""

    def __init__(self, directory, shards):
        self.directory, self.shards, self.output = directory, shards, directory / "run"
        (directory / "sitecustomize.py").write_text(PATCH)
        self.variables = {"PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', ROOT)}"}

    def log(self) -> str:
        raise NotImplementedError

    def arguments(self, steps: int, settings: dict) -> list[str]:
        """Return the arguments of amplify_ds.train."""
        changes = {
            "training.steps": steps,
            "training.micro_batch_rows": 1,
            "checkpoint.every": 4,
        }
        flags = {**SMALL, **changes, **settings, "data.train": self.shards["train"], "output": self.output}
        return ["--recipe", "tiny", *(str(part) for key, value in flags.items() for part in (f"--{key}", value))]

    def processes(self) -> list[psutil.Process]:
        """Return the processes with the run directory in their arguments, on both nodes."""
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.output) in " ".join(process.cmdline()):
                    processes.append(process)
        return processes

    def rank(self, number: int) -> psutil.Process:
        for process in self.processes():
            with suppress(psutil.Error):
                if process.environ().get("RANK") == str(number) and "amplify_ds.train" in process.cmdline():
                    return process
        raise AssertionError(f"there is no rank {number}: {self.log()}")

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def wait_for_checkpoint(self) -> None:
        self.wait_until(lambda: checkpoint.listing(self.output))

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_END
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


class SshJob(Job):
    def __init__(self, nodes, directory, shards):
        super().__init__(directory, shards)
        self.nodes = nodes

    def start(self, steps: int = LONG, **settings: object) -> None:
        command = ["bash", ROOT / "launch/train.sh", *self.nodes.launcher, "--", *self.arguments(steps, settings)]
        variables = {**environment(1), **self.nodes.variables, **self.variables}
        (self.directory / ".deepspeed_env").write_text("")
        with open(self.directory / "log", "w") as log:
            self.script = subprocess.Popen(
                [str(argument) for argument in command], cwd=ROOT, env=variables, stdout=log, stderr=log
            )

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def ask_to_stop(self) -> None:
        self.script.terminate()

    def lose_machine(self) -> None:
        self.nodes.hang_up(1)

    def code(self) -> int:
        return self.script.wait(PATIENCE)


class SlurmJob(Job):
    def __init__(self, slurm, directory, shards):
        super().__init__(directory, shards)
        self.slurm = slurm

    def start(self, steps: int = LONG, **settings: object) -> None:
        arguments = (*GPUS_AND_CORES, ROOT / "launch/slurm.sbatch", "train", *self.arguments(steps, settings))
        self.number = self.slurm.submit(ROOT, *arguments, **self.variables)

    def log(self) -> str:
        return self.slurm.log(self.number)

    def ask_to_stop(self) -> None:
        self.slurm.run("scancel", "--batch", "--signal=USR1", self.number)  # as before the time limit

    def lose_machine(self) -> None:
        others = set(self.slurm.names) - {self.slurm.job(self.number)["BatchHost"]}
        self.slurm.power_off(others.pop())

    def code(self) -> int:
        """Return the exit code of the script: SLURM's, or if the job was requeued, the one in the log."""
        self.wait_until(lambda: (job := self.slurm.job(self.number))["Restarts"] != "0" or job["JobState"] in ENDED)
        job = self.slurm.job(self.number)
        if job["Restarts"] == "0":
            return int(job["ExitCode"].partition(":")[0])
        codes = re.findall(r"code (\d+): .* Requeued", self.log())
        assert codes, self.log()
        return int(codes[-1])

    def end(self) -> None:
        self.slurm.cancel(self.number)


@pytest.fixture(params=["ssh", "SLURM"])
def job(request, shards, tmp_path):
    if request.param == "ssh":
        names = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', ROOT)}"}
        with loopback_nodes(tmp_path, **names) as nodes:
            yield SshJob(nodes, tmp_path, shards)
    else:
        started = SlurmJob(request.getfixturevalue("slurm"), tmp_path, shards)
        yield started
        started.end()


def test_complete(job):
    job.start(steps=8)
    assert job.code() == 0, job.log()
    assert (job.output / "result.json").exists()
    job.assert_nothing_is_left()


def test_asked_to_stop(job):
    job.start()
    job.wait_for_checkpoint()
    job.ask_to_stop()
    assert job.code() == 75, job.log()
    assert (job.output / "stopped.json").exists()
    job.assert_nothing_is_left()


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank(job, number):
    job.start()
    job.wait_for_checkpoint()
    job.rank(number).kill()
    assert job.code() == 69, job.log()
    job.assert_nothing_is_left()


def test_a_rank_that_stops_responding(job):
    job.start(**{"watchdog.seconds": 10})
    job.wait_for_checkpoint()
    job.rank(1).send_signal(signal.SIGSTOP)
    assert job.code() == 70, job.log()
    assert (job.output / "stalled.json").exists()
    job.assert_nothing_is_left()


def test_a_machine_that_is_lost(job):
    job.start()
    job.wait_for_checkpoint()
    job.lose_machine()
    assert job.code() == 69, job.log()
    job.assert_nothing_is_left()


def test_a_rank_that_fails(job):
    """It would fail again, so it is not restarted."""
    (job.directory / "failing").touch()
    job.start()
    assert job.code() == 1, job.log()
    assert "No space left on device" in job.log()
    job.assert_nothing_is_left()


def test_a_refusal_on_rank_0_only(job):
    job.start(steps=4)
    assert job.code() == 0, job.log()
    job.start(**{"optimizer.lr": 0.1})
    assert job.code() == 1, job.log()
    assert "was started with different settings" in job.log()
    job.assert_nothing_is_left()
