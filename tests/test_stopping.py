"""launch/train.sh: stop by signals at any moment, a stopped rank, and the same command goes on to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import EVERY_THREE, ROOT, environment, final_tensors, losses, training_words
from needs import needs_environment

from amplify_ds.training import checkpoint

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
        self.words = ["bash", ROOT / "launch/train.sh", "--ranks", "2", "--", *words]
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


@needs_environment
def test_stopped_by_signals_and_by_a_dead_rank_it_ends_with_the_same_bits(uninterrupted, shards, tmp_path):
    run = Run(tmp_path, shards)

    moments = {
        "before the first step": (run.output / ".lock").exists,
        "during a step": lambda: run.rank(1)["step"] > 1,
        "during a save": (run.output / ".saving").exists,
    }
    moment = random.Random(os.getpid()).choice(list(moments))
    name = random.choice(("SIGTERM", "SIGUSR1"))
    run.start()
    run.wait_until(moments[moment])
    run.script.send_signal(getattr(signal, name))
    assert run.end() == 75, run.log.read_text()
    stopped, newest = run.read("stopped.json"), checkpoint.newest(run.output)
    assert stopped["reason"] == name and stopped["step"] == (newest.step if newest else 0), moment
    assert stopped["checkpoint"] == (newest and str(newest.path))
    assert bool(newest) == (moment != "before the first step")

    run.start()
    run.wait_until(lambda: run.rank(1)["step"] > stopped["step"])
    assert not (run.output / "stopped.json").exists(), "that was the earlier part's"
    os.kill(run.rank(1)["pid"], signal.SIGSTOP)
    assert run.end() == 70, run.log.read_text()
    log, record = run.log.read_text(), run.rank(1)
    place = f"rank 1 on {record['host']} (process {record['pid']}), step {record['step']}, {record['phase']}"
    assert place in log and "it is stopped (state T)" in log and "its stack" in log and ".py:" in log
    assert run.read("stalled.json")["ranks"] == [1] and log.count("error: training has stood still") == 1

    run.start()
    assert run.end() == 0, run.log.read_text()
    assert losses(run.output) == losses(uninterrupted)
    ours, theirs = final_tensors(run.output), final_tensors(uninterrupted)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@needs_environment
def test_a_rank_that_is_stuck_is_named_with_the_line_where_it_stands(shards, tmp_path):
    run = Run(tmp_path, shards)
    run.start(STUCK="0")
    assert run.end() == 70, run.log.read_text()
    log = run.log.read_text()
    assert f"rank 0 on {os.uname().nodename}" in log and "step 4, waiting for data: it is behind the other ranks" in log
    assert "sitecustomize.py:" in log and "in slow" in log
    assert "rank 1 ends with code 70" in log and run.read("stalled.json")["silent"] is False


LISTENING = """
import sys, time
from pathlib import Path
from amplify_ds.training import stopping
stopping.SECONDS_BETWEEN_LOOKS = 0.01
stopping.listen_to_file(Path("."))
time.sleep(1)
sys.exit(stopping.requested())
"""


@pytest.mark.parametrize(
    "text, code",
    [
        ("", 0),
        ("stop", 1),
        ("SIGTERM of mine", 1),
        ("SIGTERM of another", 0),
        ("end of another", 0),
        ("end of mine", 143),
    ],
)
def test_a_stop_is_for_all_or_for_the_launch_that_it_names(tmp_path, text, code):
    (tmp_path / ".stop").write_text(text + "\n")
    names = {**os.environ, "AMPLIFY_LAUNCH": "mine", "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", LISTENING], cwd=tmp_path, env=names).returncode == code


@pytest.mark.parametrize(
    "words, text",
    [
        (["--recipe", "tiny"], "--output RUN is missing"),
        (["--ranks", "two", "--", "--output", "o"], "--ranks: needs a number"),
        (["--hostfile", "absent", "--", "--output", "o"], "--hostfile absent: cannot be read"),
        (["--num_nodes", "2", "--", "--output", "o"], "choose machines by the hostfile's lines"),
    ],
)
def test_bad_words_are_one_message(words, text):
    result = subprocess.run(["bash", ROOT / "launch/train.sh", *words], text=True, capture_output=True)
    assert result.returncode == 1 and text in result.stderr and "Traceback" not in result.stderr
    shown = subprocess.run(["bash", ROOT / "launch/train.sh", "--help"], text=True, capture_output=True)
    assert shown.returncode == 0 and "75    stopped on request and saved" in shown.stdout
