"""One job at a time in a run directory, on one machine or several."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from amplify_ds.errors import AmplifyError
from amplify_ds.training import rank_files, run_lock, watchdog
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "SECONDS_TO_WAIT", 0.2)
    monkeypatch.setattr(run_lock, "LONGEST_BEAT", 0.2)
    monkeypatch.setattr(run_lock, "SECONDS_OF_SILENCE", 1.0)
    for name in ("SLURM_JOB_ID", "AMPLIFY_ATTEMPT"):
        monkeypatch.delenv(name, raising=False)


def test_a_second_process_is_told_who_holds_the_run(tmp_path, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from amplify_ds.training import run_lock\n"
        "held = run_lock.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "SLURM_JOB_ID": "4711"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, env=environment, **pipes)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(AmplifyError) as refused:
        run_lock.acquire(tmp_path)
    text = str(refused.value)
    assert f"SLURM job 4711, process {first.pid} on {socket.gethostname()}, since 20" in text
    first.communicate("")
    run_lock.acquire(tmp_path).close()


def beat(folder, host, phase, stop):
    """Write the rank file of another machine's rank 0 until `stop`."""
    number = 0
    while True:
        number += 1
        record = {"job": 1, "rank": 0, "host": host, "pid": 1, "phase": phase, "beat": number}
        rank_files.write(folder, record)
        if stop.wait(0.1):
            return


@pytest.mark.parametrize(
    "host, phase, taken",
    [
        ("elsewhere", "training", True),
        ("elsewhere", watchdog.FINISHED, False),
        (socket.gethostname(), "training", False),
    ],
)
def test_a_run_of_another_machine_is_seen_where_locks_are_not(tmp_path, host, phase, taken):
    """As on a file system whose locks hold on one machine only: nothing is locked here."""
    (tmp_path / rank_files.FOLDER).mkdir()
    (tmp_path / run_lock.LOCK).write_text(json.dumps({"host": host, "process": 1, "job": "", "since": "then"}))
    stop = threading.Event()
    writer = threading.Thread(target=beat, args=(tmp_path, host, phase, stop))
    writer.start()
    while not rank_files.read(tmp_path, 0):
        time.sleep(0.01)
    try:
        if taken:
            with pytest.raises(AmplifyError, match="process 1 on elsewhere, since then"):
                run_lock.acquire(tmp_path)
            assert json.loads((tmp_path / run_lock.LOCK).read_text())["since"] == "then"
        else:
            run_lock.acquire(tmp_path).close()
    finally:
        stop.set()
        writer.join()


def test_a_machine_that_has_died_does_not_hold_the_run(tmp_path):
    (tmp_path / rank_files.FOLDER).mkdir()
    rank_files.write(tmp_path, {"job": 1, "rank": 0, "host": "elsewhere", "pid": 1, "phase": "training", "beat": 7})
    run_lock.acquire(tmp_path).close()
    assert json.loads((tmp_path / run_lock.LOCK).read_text())["host"] == socket.gethostname()
