"""The README's first command, shortened to a few steps: killed on the way, started again, and run a third time."""

import os
import re
import signal
import subprocess
import time

import pytest

from amplify_ds.training import checkpoint
from tests.support.needs import needs_environment
from tests.support.paths import ROOT

SHORT = ["--training.steps", "40", "--checkpoint.every", "10", "--evaluation.every", "20"]

pytestmark = [pytest.mark.slow, needs_environment]


def words(place):
    return ["bash", ROOT / "launch/quickstart.sh", place, *SHORT]


def test_killed_started_again_and_reused(tmp_path):
    place = tmp_path / "a place"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(words(place), stdout=log, stderr=log, env=environment)
        while not checkpoint.listing(place / "run") and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "log").read_text()
        os.kill(process.pid, signal.SIGKILL)  # the script alone: what it started must end by itself
        process.wait()

    again = subprocess.run(words(place), text=True, capture_output=True, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train is complete" in again.stdout and "continuing from" in again.stderr
    assert re.search(r"perplexity, <mask> only +\d+\.\d\d before, \d+\.\d\d after; residue frequencies", again.stdout)
    assert "embeddings (1, 88, 192)" in again.stdout
    for path in ("run/plots/validation_ppl.png", "run/result.json", "export/model.safetensors"):
        assert (place / path).exists()

    third = subprocess.run(words(place), text=True, capture_output=True, env=environment)
    assert third.returncode == 0 and "already complete: 40 steps" in third.stdout
    assert "export holds the weights of" in third.stdout


def test_help_and_bad_arguments():
    shown = subprocess.run(["bash", ROOT / "launch/quickstart.sh", "--help"], text=True, capture_output=True)
    assert shown.returncode == 0 and "bash launch/quickstart.sh DIR" in shown.stdout
    refused = subprocess.run(["bash", ROOT / "launch/quickstart.sh", "--fast"], text=True, capture_output=True)
    assert refused.returncode == 2 and "--fast" in refused.stderr
