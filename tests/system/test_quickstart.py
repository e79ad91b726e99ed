"""The README's first command with fewer steps: killed during training, started again, and run a third time."""

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


def command(directory):
    return ["bash", ROOT / "launch/quickstart.sh", directory, *SHORT]


def test_killed_started_again_and_reused(tmp_path):
    directory = tmp_path / "a directory"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command(directory), stdout=log, stderr=log, env=environment)
        while not checkpoint.listing(directory / "run") and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "log").read_text()
        os.kill(process.pid, signal.SIGKILL)  # the script only: the processes it started must end by themselves
        process.wait()

    again = subprocess.run(command(directory), text=True, capture_output=True, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train is complete" in again.stdout and "continuing from" in again.stderr
    assert re.search(r"perplexity, <mask> only +\d+\.\d\d before, \d+\.\d\d after; residue frequencies", again.stdout)
    assert "embeddings (1, 88, 192)" in again.stdout
    for path in ("run/plots/validation_ppl.png", "run/result.json", "export/model.safetensors"):
        assert (directory / path).exists()

    third = subprocess.run(command(directory), text=True, capture_output=True, env=environment)
    assert third.returncode == 0 and "already complete: 40 steps" in third.stdout
    assert "export has the weights of" in third.stdout


def test_help_and_bad_arguments():
    result = subprocess.run(["bash", ROOT / "launch/quickstart.sh", "--help"], text=True, capture_output=True)
    assert result.returncode == 0 and "bash launch/quickstart.sh DIR" in result.stdout
    result = subprocess.run(["bash", ROOT / "launch/quickstart.sh", "--fast"], text=True, capture_output=True)
    assert result.returncode == 2 and "--fast" in result.stderr
