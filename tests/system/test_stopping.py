"""launch/train.sh: after a stop at any moment or a stopped rank, the same command continues to the same bits."""

import os
import signal
import subprocess

import pytest

from amplify_ds.training import checkpoint
from tests.support.commands import python
from tests.support.interrupted import Run
from tests.support.needs import needs_environment
from tests.support.paths import ROOT
from tests.support.training import assert_same_bits


@needs_environment
@pytest.mark.parametrize(
    "moment, name",
    [
        pytest.param("before the first step", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("during a step", "SIGUSR1", marks=pytest.mark.slow),
        ("during a save", "SIGTERM"),
    ],
)
def test_a_run_stopped_by_a_signal_at_any_moment_continues_to_the_same_bits(
    moment, name, uninterrupted, shards, tmp_path
):
    run = Run(tmp_path, shards)
    moments = {
        "before the first step": (run.output / ".lock").exists,
        "during a step": lambda: run.rank(1)["step"] > 1,
        "during a save": (run.output / ".saving").exists,
    }
    run.start()
    run.wait_until(moments[moment])
    run.script.send_signal(getattr(signal, name))
    assert run.end() == 75, run.log.read_text()
    stopped, newest = run.read("stopped.json"), checkpoint.newest(run.output)
    assert stopped["reason"] == name and stopped["step"] == (newest.step if newest else 0), moment
    assert stopped["checkpoint"] == (newest and str(newest.path))
    assert newest or moment == "before the first step"

    run.start()
    assert run.end() == 0, run.log.read_text()
    assert not (run.output / "stopped.json").exists(), "it belongs to the earlier start"
    assert_same_bits(run.output, uninterrupted)


@needs_environment
def test_a_stopped_rank_ends_the_run_which_continues_to_the_same_bits(uninterrupted, shards, tmp_path):
    run = Run(tmp_path, shards)
    run.start()
    run.wait_until(lambda: run.rank(1)["step"] > 1)
    os.kill(run.rank(1)["pid"], signal.SIGSTOP)
    assert run.end() == 70, run.log.read_text()
    log, record = run.log.read_text(), run.rank(1)
    location = f"rank 1 on {record['host']} (process {record['pid']}), step {record['step']}, {record['phase']}"
    assert location in log and "it is stopped (state T)" in log and "its stack" in log and ".py:" in log
    assert run.read("stalled.json")["ranks"] == [1] and log.count("error: training has stood still") == 1

    run.start()
    assert run.end() == 0, run.log.read_text()
    assert_same_bits(run.output, uninterrupted)


@needs_environment
def test_a_stuck_rank_is_reported_with_the_line_of_its_loop(shards, tmp_path):
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
stopping.SECONDS_BETWEEN_POLLS = 0.01
if sys.argv[1] == "opened":
    stopping.opened()
stopping.listen_to_file(Path("."))
time.sleep(1)
sys.exit(stopping.requested())
"""


@pytest.mark.parametrize(
    "text, moment, code",
    [
        ("", "opened", 0),
        ("stop", "opened", 1),
        ("stop", "starting", 0),  # it is for an earlier launch
        ("SIGTERM of mine", "starting", 1),
        ("SIGTERM of another", "opened", 0),
        ("end 69 of another", "opened", 0),
        ("end 69 of mine", "starting", 69),
    ],
)
def test_a_stop_request_is_for_any_launch_or_for_the_one_it_names(tmp_path, text, moment, code):
    (tmp_path / ".stop").write_text(text + "\n")
    names = {**os.environ, "AMPLIFY_LAUNCH": "mine", "PYTHONPATH": str(ROOT)}
    assert python("-c", LISTENING, moment, cwd=tmp_path, env=names).returncode == code


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--recipe", "tiny"], "--output RUN is missing"),
        (["--ranks", "two", "--", "--output", "o"], "--ranks: needs a number"),
        (["--hostfile", "absent", "--", "--output", "o"], "--hostfile absent: cannot be read"),
        (["--num_nodes", "2", "--", "--output", "o"], "choose machines by the hostfile's lines"),
    ],
)
def test_invalid_options_are_one_message(arguments, text):
    result = subprocess.run(["bash", ROOT / "launch/train.sh", *arguments], text=True, capture_output=True)
    assert result.returncode == 1 and text in result.stderr and "Traceback" not in result.stderr
    help_text = subprocess.run(["bash", ROOT / "launch/train.sh", "--help"], text=True, capture_output=True)
    assert help_text.returncode == 0 and "75    stopped on request and saved" in help_text.stdout
