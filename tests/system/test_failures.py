"""One rank fails: the console shows its message and nothing else, for any rank and anything the others wait for."""

import os
import re
import signal
import subprocess
import time

import pytest

from amplify_ds.training.process_table import ranks_below
from tests.support.commands import environment, run
from tests.support.interrupted import PATCH as SLOW
from tests.support.needs import needs_environment
from tests.support.paths import ROOT
from tests.support.training import EVERY_THREE, launch_words, train, training_words

LAUNCHER = re.compile(r"\[\d{4}-\d\d-\d\d .*\[launch.py:")  # DeepSpeed's own line when a rank has ended
# Imported by every Python process: makes a function raise an error on one rank.
FAILING = """
import os
if os.environ.get("RANK") == os.environ["FAILING_RANK"]:
    import functools, importlib, time
    from amplify_ds.errors import AmplifyError
    *owner, name = os.environ["FAILING_FUNCTION"].split(":")
    target = functools.reduce(getattr, owner[1:], importlib.import_module(owner[0]))
    def fail(*arguments, **options):
        time.sleep(1)  # by then the other rank waits
        raise {"AmplifyError": AmplifyError, "ValueError": ValueError}[os.environ["FAILING_WITH"]]("made to fail")
    setattr(target, name, fail)
"""
ENGINE = "amplify_ds.training.engine"


def messages(result) -> list[str]:
    """Return the lines on standard error without those of the launcher."""
    return [line for line in result.stderr.splitlines() if not LAUNCHER.match(line)]


@pytest.mark.parametrize(
    "rank, function",
    [
        (0, f"{ENGINE}:start_ranks"),  # the other rank waits for this one to join
        (1, f"{ENGINE}:start_ranks"),
        (0, "amplify_ds.training.full_state:FullState:load"),  # the other rank waits in a collective, or does the same
        (1, f"{ENGINE}:Engine:update"),
    ],
)
def test_the_console_has_the_message_of_the_rank_that_failed_and_nothing_else(shards, tmp_path, rank, function):
    output = tmp_path / "run"
    if "FullState" in function:
        assert train(1, output, shards, training__steps=4, **EVERY_THREE).returncode == 0
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    faults = {"FAILING_RANK": str(rank), "FAILING_FUNCTION": function, "FAILING_WITH": "AmplifyError"}
    began = time.monotonic()
    result = run(
        *launch_words(2, output, shards, **EVERY_THREE),
        env=environment(2) | faults | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    prefix = f"[rank 1 on {os.uname().nodename}] " if rank else ""
    assert result.returncode == 1 and time.monotonic() - began < 120
    assert [line for line in messages(result) if not line.startswith(("step ", "    ", "continuing"))] == [
        f"{prefix}error: made to fail"
    ]


def test_an_unexpected_error_is_one_traceback_on_the_console(shards, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    faults = {"FAILING_RANK": "0", "FAILING_FUNCTION": f"{ENGINE}:Engine:update", "FAILING_WITH": "ValueError"}
    command = launch_words(2, tmp_path / "run", shards)
    result = run(*command, env=environment(2) | faults | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert result.returncode == 1 and result.stderr.count("Traceback") == 1 and "frame #" not in result.stderr
    assert messages(result)[-1].endswith("ValueError: made to fail") and "[rank 1" not in result.stderr
    log = (tmp_path / "run/logs/rank-00001.log").read_text()
    assert f"rank 0 on {os.uname().nodename} has failed: made to fail" in log


@needs_environment
def test_a_refusal_is_all_that_the_launch_script_prints(shards, tmp_path):
    output = tmp_path / "run"
    assert train(1, output, shards, training__steps=4, **EVERY_THREE).returncode == 0
    before = {path: path.read_bytes() for path in output.rglob("[!.]*") if path.is_file()}
    arguments = training_words(output, shards, training__seed=7, **EVERY_THREE)
    result = run("bash", ROOT / "launch/train.sh", "--ranks", "2", "--", *arguments, env=environment(2))
    assert result.returncode == 1 and not result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"error: {output}: ") and "training.seed: the run has 0, this command has 7" in lines[1]
    assert len(lines) == 3 and lines[2].startswith("Choose another --output"), result.stderr
    assert before == {path: path.read_bytes() for path in before}


def test_a_killed_rank_is_named_with_the_step_that_training_had_reached(shards, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    output = tmp_path / "run"
    log = tmp_path / "log"
    command = launch_words(2, output, shards, checkpoint__every=1)
    with open(log, "w") as file:
        job = subprocess.Popen(
            command, cwd=ROOT, env=environment(2) | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, stdout=file, stderr=file
        )
    while not (output / "checkpoints/step-00000002").exists():
        assert job.poll() is None, log.read_text()
        time.sleep(0.02)
    [victim] = [pid for pid, rank in ranks_below(job.pid).items() if rank == 1]
    os.kill(victim, signal.SIGKILL)
    assert job.wait(timeout=60) != 0
    message = rf"error: rank 1 \(process {victim}\) on \S+ has ended; this rank was at step (\d+), "
    match = re.search(message, log.read_text())
    assert match and int(match[1]) >= 2, log.read_text()
