"""Two nodes behind a hostfile, ssh and pdsh train as two ranks of one node; stopped or killed, nothing stays behind."""

import os
import random
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from conftest import EVERY_THREE, ROOT, SMALL, final_tensors, losses, training_words
from needs import needs_environment, needs_nodes
from nodes import Nodes, loopback_nodes
from test_stopping import Run

from amplify_ds.training import checkpoint

pytestmark = [needs_environment, needs_nodes]
GLOBAL_ROWS = SMALL["training.global_batch_tokens"] // 1024  # of a step


SECONDS_TO_END = 60
# Imported by every Python that starts. Steps of half a second leave time to meet them; `recording` notes their rows.
PATCH = """
import os, time
import recording
if "LOCAL_RANK" in os.environ:
    from amplify_ds.data.loader import TrainingBatches
    read = TrainingBatches.__getitem__
    def slow(self, index):
        time.sleep(0.5)
        return read(self, index)
    TrainingBatches.__getitem__ = slow
"""


class RunOnNodes(Run):
    """A run that the same command starts again and again, on two nodes."""

    def __init__(self, place: Path, nodes: Nodes, shards, stage: int = 1, restart=(), **settings):
        super().__init__(place, shards)
        training = training_words(self.output, shards, stage, **EVERY_THREE, **settings)
        self.words = [*nodes.before, "bash", ROOT / "launch/train.sh", *nodes.launcher, *restart, "--", *training]
        self.environment |= nodes.variables
        self.nodes = nodes
        (place / "sitecustomize.py").write_text(PATCH)
        shutil.copy(ROOT / "tests/recording/sitecustomize.py", place / "recording.py")

    def start(self, **variables) -> None:
        self.read_before = len(record(self.output))
        super().start(**variables)

    def wait_for_steps(self, count: int) -> None:
        """Until both ranks have read the rows of so many steps since the start."""
        self.wait_until(lambda: len(record(self.output)) >= self.read_before + count * GLOBAL_ROWS)

    def launcher(self, node: int) -> psutil.Process:
        """DeepSpeed's launcher on that node."""
        [found] = [p for p in self.nodes.processes(node) if "deepspeed.launcher.launch" in p.cmdline()]
        return found

    def end(self) -> int:
        """The script's exit code; soon nothing of the run is left then, on no node."""
        self.script.wait()
        # Of a node that cannot be reached the script does not know when the last process has ended.
        _, left = psutil.wait_procs([p for node in (0, 1) for p in self.nodes.processes(node)], SECONDS_TO_END)
        assert not left, left
        return super().end()


def record(output: Path) -> list[tuple[int, str]]:
    """(position in the stream, digest) of every row that a run has read so far; some are read again after a start."""
    file = output.with_suffix(".rows")
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(position), digest) for position, digest in map(str.split, lines)]


def assert_same_bits(output: Path, expected: Path) -> None:
    assert losses(output) == losses(expected)
    ours, theirs = final_tensors(output), final_tensors(expected)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert set(record(output)) == set(record(expected)), "other rows or masks"


@pytest.fixture
def nodes(tmp_path):
    with loopback_nodes(tmp_path, RECORD=str(tmp_path / "run.rows")) as nodes:
        yield nodes


def test_at_stage_3_two_nodes_compute_what_two_ranks_of_one_do(nodes, uninterrupted, shards, tmp_path):
    run = RunOnNodes(tmp_path, nodes, shards, stage=3)
    run.start()
    assert run.end() == 0, run.log.read_text()
    ours, theirs = losses(run.output), losses(uninterrupted)
    assert ours == pytest.approx(theirs, abs=1e-6) and len(ours) == 10
    weights, expected = final_tensors(run.output), final_tensors(uninterrupted)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert sorted(record(run.output)) == sorted(record(uninterrupted))


def test_killed_and_stopped_on_two_nodes_it_ends_with_the_same_bits(nodes, uninterrupted, shards, tmp_path):
    run = RunOnNodes(tmp_path, nodes, shards)
    ways = {"launcher": lambda: run.launcher(1).kill(), "ssh session": lambda: nodes.hang_up(1)}
    way = random.Random(os.getpid()).choice(list(ways))
    run.start()
    run.wait_for_steps(2)
    ways[way]()
    assert run.end() not in (0, 75), f"{way}: {run.log.read_text()}"
    assert not (run.output / "result.json").exists() and not (run.output / "stopped.json").exists()

    run.start()
    run.wait_for_steps(1)
    run.script.terminate()
    assert run.end() == 75, run.log.read_text()
    stopped, newest = run.read("stopped.json"), checkpoint.newest(run.output)
    assert stopped["reason"] == "SIGTERM" and stopped["step"] == newest.step < 10

    run.start()
    assert run.end() == 0, run.log.read_text()
    assert_same_bits(run.output, uninterrupted)
