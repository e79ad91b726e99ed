"""A run of launch/train.sh that a test interrupts and starts again."""

import json
import os
import subprocess
import time
from pathlib import Path

import psutil

from tests.support.commands import environment
from tests.support.paths import ROOT
from tests.support.training import EVERY_THREE, training_words

# Imported by every Python that starts; makes steps and saves long enough to be met, or one rank stand still.
PATCH = """
import os, time
if "LOCAL_RANK" in os.environ:
    from amplify_ds.data.loader import TrainingBatches
    from amplify_ds.training import checkpoint
    read, write = TrainingBatches.__getitem__, checkpoint.write
    def slow(self, index):
        time.sleep(0.1)
        while os.environ.get("STUCK") == os.environ["RANK"] and index >= 6:
            pass
        return read(self, index)
    def slow_write(run, named_state, state):
        (run / ".saving").touch()
        time.sleep(0.3)
        return write(run, named_state, state)
    TrainingBatches.__getitem__, checkpoint.write = slow, slow_write
"""


class Run:
    """A run that is started again and again by the same command."""

    def __init__(self, place: Path, shards, **settings):
        (place / "sitecustomize.py").write_text(PATCH)
        self.output, self.log = place / "run", place / "log"
        words = training_words(self.output, shards, watchdog__seconds=10, **EVERY_THREE, **settings)
        self.words = ["bash", str(ROOT / "launch/train.sh"), "--ranks", "2", "--", *words]
        self.environment = {**environment(2), "PYTHONPATH": f"{place}:{os.environ.get('PYTHONPATH', ROOT)}"}

    def start(self, **variables) -> None:
        log = open(self.log, "w")
        environment = {**self.environment, **variables}
        self.script = subprocess.Popen(self.words, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def wait_until(self, condition) -> None:
        while not condition():
            assert self.script.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def rank(self, rank: int) -> dict:
        try:
            return json.loads((self.output / f".ranks/rank-{rank:05d}.json").read_text())
        except (OSError, ValueError):  # not yet there, or being written
            return {"step": 0}

    def end(self) -> int:
        """The script's exit code; nothing of the run is left then."""
        code = self.script.wait(timeout=60)
        left = [p for p in psutil.process_iter(["cmdline"]) if str(self.output) in " ".join(p.info["cmdline"] or ())]
        assert not left, left
        return code

    def read(self, name: str) -> dict:
        return json.loads((self.output / name).read_text())
