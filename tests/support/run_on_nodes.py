"""A run on two nodes that a test interrupts and starts again, and the rows that it has read."""

import shutil
from pathlib import Path

import psutil

from tests.support.interrupted import Run
from tests.support.nodes import Nodes
from tests.support.paths import ROOT
from tests.support.training import EVERY_THREE, SMALL, assert_same_bits, training_words

GLOBAL_ROWS = SMALL["training.global_batch_tokens"] // 1024  # per step
SECONDS_TO_END = 60

# Imported by every Python process: makes steps long enough to interrupt; `recording` writes down their rows.
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
    """A run on two nodes that can be started several times with the same command."""

    def __init__(self, directory: Path, nodes: Nodes, shards, stage: int = 1, restart=(), **settings):
        super().__init__(directory, shards)
        training = training_words(self.output, shards, stage, **EVERY_THREE, **settings)
        self.command = [
            *nodes.before,
            "bash",
            str(ROOT / "launch/train.sh"),
            *nodes.launcher,
            *restart,
            "--",
            *training,
        ]
        self.environment |= nodes.variables
        self.nodes = nodes
        (directory / "sitecustomize.py").write_text(PATCH)
        shutil.copy(ROOT / "tests/support/recording/sitecustomize.py", directory / "recording.py")

    def start(self, **variables) -> None:
        self.read_before = len(record(self.output))
        super().start(**variables)

    def wait_for_steps(self, count: int) -> None:
        """Wait until the ranks have read the rows of `count` steps since the start."""
        self.wait_until(lambda: len(record(self.output)) >= self.read_before + count * GLOBAL_ROWS)

    def launcher(self, node: int) -> psutil.Process:
        """Return DeepSpeed's launcher on that node."""
        [process] = [p for p in self.nodes.processes(node) if "deepspeed.launcher.launch" in p.cmdline()]
        return process

    def end(self) -> int:
        """Wait for the script and return its exit code. Fails if a process of the run is left on a node."""
        self.script.wait()
        # The script does not wait for processes on a node that cannot be reached.
        _, left = psutil.wait_procs([p for node in (0, 1) for p in self.nodes.processes(node)], SECONDS_TO_END)
        assert not left, left
        return super().end()


def record(output: Path) -> list[tuple[int, str]]:
    """Return (position in the stream, digest) of every row that a run has read; a restart reads some of them again."""
    file = output.with_suffix(".rows")
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(position), digest) for position, digest in map(str.split, lines)]


def assert_same_bits_and_rows(output: Path, expected: Path) -> None:
    assert_same_bits(output, expected)
    assert set(record(output)) == set(record(expected)), "other rows or masks"
