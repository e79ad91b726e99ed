"""launch/slurm.sbatch under a real SLURM of two nodes on this machine (tests/support/slurm.py)."""

import json
import time
from contextlib import suppress

import psutil
import pytest

from amplify_ds.training import checkpoint
from tests.support.needs import needs_environment, needs_namespaces, needs_slurm
from tests.support.paths import ROOT
from tests.support.slurm import GPUS_AND_CORES
from tests.support.training import SMALL

pytestmark = [
    pytest.mark.slow,
    needs_slurm,
    needs_namespaces,
    needs_environment,
]
SECONDS_TO_END = 30  # until nothing is left of a job that has ended, on any node
LONG = 5000  # steps that no test waits for


@pytest.fixture
def job(slurm, shards, tmp_path):
    started = Job(slurm, shards, tmp_path / "run")
    yield started
    started.cancel()


class Job:
    """A job that runs the script."""

    def __init__(self, slurm, shards, output):
        self.recipe = ("train", "--recipe", "tiny")
        self.slurm, self.shards, self.output, self.numbers = slurm, shards, output, []

    def arguments(self, steps: int = LONG, **settings: object) -> list[str]:
        """Return the arguments of launch/slurm.sbatch."""
        changes = {"training.steps": steps, "training.micro_batch_rows": 1, "data.workers": 0, "checkpoint.every": 5}
        flags = {**SMALL, **changes, **settings, "data.train": self.shards["train"], "output": self.output}
        return [*self.recipe, *(str(part) for key, value in flags.items() for part in (f"--{key}", value))]

    def submit(self, *options: str, steps: int = LONG, directory=ROOT, variables=None, **settings: object) -> str:
        settings = {key.replace("__", "."): value for key, value in settings.items()}
        script = ROOT / "launch/slurm.sbatch"
        arguments = (*GPUS_AND_CORES, *options, script, *self.arguments(steps, **settings))
        self.number = self.slurm.submit(directory, *arguments, **(variables or {}))
        self.numbers.append(self.number)
        return self.number

    def ranks(self, number: str | None = None) -> dict[int, psutil.Process]:
        """Return {rank: process} of amplify_ds.train."""
        ranks = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, KeyError):
                variables = process.environ()
                if variables["SLURM_JOB_ID"] == (number or self.number) and "amplify_ds.train" in process.cmdline():
                    if "RANK" in variables and variables.get("SLURM_CONF") == self.slurm.environment["SLURM_CONF"]:
                        ranks[int(variables["RANK"])] = process
        return ranks

    def wait_for_checkpoint(self) -> None:
        self.slurm.wait_until(lambda: checkpoint.listing(self.output), self.number)

    @property
    def log(self) -> str:
        return self.slurm.log(self.number)

    def requeued(self) -> dict[str, str]:
        """Wait until SLURM has requeued the job, and return its description."""
        return self.slurm.wait_until(
            lambda: (job := self.slurm.job(self.number))["Restarts"] == "1" and job, self.number
        )

    def wait_until_running(self) -> None:
        self.slurm.wait_for(self.number, "RUNNING")
        self.slurm.wait_until(lambda: self.slurm.log_exists(self.number), self.number)

    def log_of_rank_0(self) -> str:
        return "".join(path.read_text() for path in self.output.glob("logs/*"))

    def assert_ended_soon_after(self, text: str) -> None:
        """Check that the log has the message and that no process is left soon after it."""
        assert text in self.log, self.log
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_END
        while left := self.ranks():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    def cancel(self) -> None:
        self.slurm.cancel(*self.numbers)
        for number in self.numbers:
            for process in self.ranks(number).values():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def test_a_killed_rank_is_a_lost_rank_and_the_job_is_requeued(job):
    job.submit()
    job.wait_for_checkpoint()
    job.ranks()[1].kill()
    job.requeued()
    assert "code 69: a machine or a rank was lost. Requeued" in job.log
    assert "Traceback" not in job.log
    job.assert_nothing_left()


def test_an_error_of_rank_0_alone_ends_all_nodes_at_once(job):
    """A second job in the same run directory, then one with another setting."""
    shared = ("--partition=shared", "--oversubscribe")
    first = job.submit(*shared)
    job.wait_for_checkpoint()
    second = job.submit(*shared)
    assert job.slurm.wait_for(second)["ExitCode"] == "1:0"
    assert f"SLURM job {first}" in job.log
    job.assert_ended_soon_after("another process is training this run")
    assert job.slurm.job(first)["JobState"] == "RUNNING"
    job.slurm.run("scancel", first)
    job.slurm.wait_for(first)
    third = job.submit(*shared, optimizer__lr=0.1)
    assert job.slurm.wait_for(third)["ExitCode"] == "1:0"
    job.assert_ended_soon_after("was started with different settings")


@pytest.mark.parametrize("moment", ["preflight", "start", "training"])
def test_a_warning_at_any_moment_requeues_the_job(job, moment):
    job.submit()
    job.wait_until_running()
    if moment == "start":
        job.slurm.wait_until(lambda: "nothing failed." in job.log, job.number)
        time.sleep(1)
    elif moment == "training":
        job.wait_for_checkpoint()
    job.slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.requeued()
    assert "SIGUSR1 from SLURM" in job.log
    assert "code 75: stopped on request and saved, which is no failure. Requeued" in job.log
    job.assert_nothing_left()
    if moment == "training":
        assert json.loads((job.output / "stopped.json").read_text())["reason"] == "SIGUSR1"


def test_at_the_time_limit_the_ranks_save_within_slurms_patience(job):
    """Without a warning, SLURM sends SIGTERM to the ranks, their launchers and the script at once."""
    job.submit("--time=1", "--signal=B:USR1@0")
    job.requeued()
    assert "SIGTERM from SLURM" in job.log and "Requeued" in job.log
    assert json.loads((job.output / "stopped.json").read_text())["reason"] == "SIGTERM"
    job.assert_nothing_left()


def test_a_cancelled_job_saves_and_is_not_requeued(job):
    job.submit()
    job.wait_for_checkpoint()
    job.slurm.run("scancel", job.number)
    assert job.slurm.wait_for(job.number)["JobState"] == "CANCELLED"
    job.assert_nothing_left()
    assert (job.output / "stopped.json").exists()


def test_the_350m_made_small_with_an_environment_that_is_not_exported(job):
    job.recipe = ("350m",)
    job.submit("--export=NONE", steps=6)
    assert job.slurm.wait_for(job.number)["ExitCode"] == "0:0", job.log
    assert (job.output / "result.json").exists()


def test_a_restart_ends_ranks_on_a_node_that_slurm_cannot_reach(job):
    job.submit("--nodes=1")
    job.wait_for_checkpoint()
    host = job.slurm.job(job.number)["BatchHost"]
    [old] = job.ranks().values()
    job.slurm.kill_slurmd(host)
    try:
        job.slurm.run("scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=test")
        job.requeued()
        assert old.is_running()
        job.slurm.wait_until(lambda: job.slurm.job(job.number)["JobState"] == "RUNNING", job.number)
        job.slurm.wait_until(lambda: "continuing from" in job.log_of_rank_0(), job.number)
        assert not old.is_running() and job.slurm.job(job.number)["BatchHost"] != host
    finally:
        job.slurm.power_off(host)
        job.slurm.restart_node(host)


def test_a_submission_from_another_directory_is_refused(job, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    job.submit(directory=other)
    assert job.slurm.wait_for(job.number)["ExitCode"] == "2:0"
    assert "submit from the top of the repository" in job.log
    assert not job.output.exists() and not list(other.iterdir())


def test_the_line_of_the_documents_and_an_interactive_job(slurm, shards, tmp_path):
    """As written, in a copy of the repository, but for the number of steps."""
    top = tmp_path / "repository"
    top.mkdir()
    for name in ("amplify_ds", "data_prep", "ds_configs", "launch", "requirements.txt", "pyproject.toml"):
        (top / name).symlink_to(ROOT / name)
    for name in ("requirements-contacts.txt", "requirements-plots.txt", ".venv"):
        (top / name).symlink_to(ROOT / name)
    (top / "shards").symlink_to(shards["train"].parent)
    text = (ROOT / "docs/cluster.md").read_text()
    sbatch = next(line for line in text.splitlines() if "launch/slurm.sbatch train --recipe tiny" in line)
    number = slurm.submit(top, *sbatch.split()[1:], "--training.steps", "2")
    assert slurm.wait_for(number)["ExitCode"] == "0:0", slurm.log(number)
    assert (top / "runs/first/result.json").exists()
    interactive = [line for line in text.splitlines() if "launch/train.sh" in line and "--slurm" in line]
    assert len(interactive) == 2
    script = " && ".join(f"{line} --training.steps 3" for line in interactive)
    printed = slurm.run("salloc", "--nodes=2", *GPUS_AND_CORES, "bash", "-c", script, directory=top)
    assert "nothing failed." in printed and "complete: 3 steps" in printed
    slurm.cancel()
