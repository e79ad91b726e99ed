"""A run on two nodes that a test interrupts and starts again, and what it has read."""

import shutil
from pathlib import Path

import psutil

from tests.support.interrupted import Run
from tests.support.nodes import Nodes
from tests.support.paths import ROOT
from tests.support.training import EVERY_THREE, SMALL, assert_same_bits, training_words

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
        (place / "sitecustomize.py").write_text(PATCH)
        shutil.copy(ROOT / "tests/support/recording/sitecustomize.py", place / "recording.py")

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


def assert_same_bits_and_rows(output: Path, expected: Path) -> None:
    assert_same_bits(output, expected)
    assert set(record(output)) == set(record(expected)), "other rows or masks"
