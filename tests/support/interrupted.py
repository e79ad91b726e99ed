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

# Imported by every Python process. Makes steps and saves slow enough to be interrupted, or makes one rank hang.
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
    """A run that can be started several times with the same command."""

    def __init__(self, folder: Path, shards, **settings):
        (folder / "sitecustomize.py").write_text(PATCH)
        self.output, self.log = folder / "run", folder / "log"
        arguments = training_words(self.output, shards, watchdog__seconds=10, **EVERY_THREE, **settings)
        self.command = ["bash", str(ROOT / "launch/train.sh"), "--ranks", "2", "--", *arguments]
        self.environment = {**environment(2), "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', ROOT)}"}

    def start(self, **variables) -> None:
        log = open(self.log, "w")
        environment = {**self.environment, **variables}
        self.script = subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def wait_until(self, condition) -> None:
        while not condition():
            assert self.script.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def rank(self, rank: int) -> dict:
        try:
            return json.loads((self.output / f".ranks/rank-{rank:05d}.json").read_text())
        except (OSError, ValueError):  # does not exist yet, or is being written
            return {"step": 0}

    def end(self) -> int:
        """Wait for the script and return its exit code. Fails if a process of the run is left."""
        code = self.script.wait(timeout=60)
        left = [p for p in psutil.process_iter(["cmdline"]) if str(self.output) in " ".join(p.info["cmdline"] or ())]
        assert not left, left
        return code

    def read(self, name: str) -> dict:
        return json.loads((self.output / name).read_text())
