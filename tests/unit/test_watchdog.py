"""Which ranks hold up the job, from the records of all ranks; a stuck process ends."""

import json
import mmap
import os
import time
from pathlib import Path

import pytest
import torch

from amplify_ds.training import rank_files
from amplify_ds.training.rank_files import FOLDER
from amplify_ds.training.stall_report import FINISHED, STALLED, find_culprits
from amplify_ds.training.watchdog import Watchdog, forget_earlier
from tests.support.commands import python

FLIGHT_RECORDER = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")  # torch reads the first that is set
WAITS = ["/lib/torch/distributed/distributed_c10d.py:1 in all_reduce"]
WORKS = ["/lib/amplify_ds/training/checkpoint.py:1 in write"]


def records(**changes):
    """Return (before, after, world size) of four ranks that wait in the same phase. changes: r1={…} for rank 1."""
    common = {"phase": "forward and backward", "moves": 7, "stack": WAITS}
    before = {rank: {**common, "beat": 10, **changes.get(f"r{rank}", {})} for rank in range(4)}
    after = {rank: {**common, "beat": 14, **changes.get(f"r{rank}", {})} for rank in range(4)}
    return before, after, 4


def test_a_rank_whose_file_stays_the_same_is_silent():
    verdict = find_culprits(*records(r2={"beat": 3}, r1={"moves": 6}))
    assert verdict.ranks == [2] and verdict.silent
    before, after, size = records()
    del before[3], after[3]
    assert find_culprits(before, after, size).ranks == [3], "no record"
    assert find_culprits(*records(r0={"beat": 3, "phase": FINISHED}, r1={"moves": 6})).ranks == [1], (
        "a finished rank may be silent"
    )


def test_otherwise_the_rank_that_is_behind_or_does_not_wait():
    assert find_culprits(*records(r3={"moves": 6})).ranks == [3]
    assert find_culprits(*records(r0={"phase": "waiting for data"})).ranks == [0]
    assert find_culprits(*records(r0={"stack": WORKS})).ranks == [0]
    both = find_culprits(*records(r1={"moves": 5, "stack": WORKS}, r2={"moves": 5}))
    assert both.ranks == [1] and "no collective" in both.why
    assert find_culprits(*records()).ranks == [0, 1, 2, 3] and "same phase" in find_culprits(*records()).why


def test_a_loop_that_moves_is_left_alone_and_one_that_stands_still_ends(tmp_path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from amplify_ds.training.watchdog import Watchdog, forget_earlier\n"
        "run = Path(sys.argv[1]); (run / 'stalled.json').write_text('{}'); forget_earlier(run)\n"
        "watch = Watchdog(run, 0, 1, 1.0, job=5).start()\n"
        "for _ in range(30): watch.at(3, 'evaluation'); time.sleep(0.1)\n"
        "print('moved', flush=True); time.sleep(100)\n"
    )
    began = time.monotonic()
    result = python("-c", program, tmp_path)
    assert result.returncode == STALLED and result.stdout == "moved\n" and 3.9 < time.monotonic() - began < 20
    assert "step 3, evaluation: its loop does not move" in result.stderr and "<string>:6 in <module>" in result.stderr
    assert json.loads((tmp_path / "stalled.json").read_text())["job"] == 5


def test_a_process_that_holds_the_interpreter_ends_too(tmp_path):
    """The watchdog's thread cannot run; faulthandler's timer, 1.5 times as late plus five seconds, does not need it."""
    program = (
        "import ctypes, sys; from pathlib import Path\n"
        "from amplify_ds.training.watchdog import Watchdog, forget_earlier\n"
        "run = Path(sys.argv[1]); forget_earlier(run); watch = Watchdog(run, 0, 1, 0.5, job=5).start()\n"
        "import time; time.sleep(0.2); ctypes.PyDLL(None).sleep(60)\n"
    )
    began = time.monotonic()
    result = python("-c", program, tmp_path)
    assert result.returncode == 1 and "Timeout" in result.stderr and time.monotonic() - began < 30


@pytest.mark.parametrize("set_by_user", [None, *FLIGHT_RECORDER])
def test_torch_records_collectives_in_the_run_unless_set_otherwise(tmp_path, monkeypatch, set_by_user):
    for name in FLIGHT_RECORDER:
        monkeypatch.setenv(name, "")  # so that the end of the test restores it
        monkeypatch.delenv(name)
    if set_by_user:
        monkeypatch.setenv(set_by_user, "/elsewhere/of-rank-")
    monkeypatch.chdir(tmp_path)
    Watchdog(Path("run"), 3, 4, 0, job=5)
    variables = {name: os.environ[name] for name in FLIGHT_RECORDER if name in os.environ}
    here = str(tmp_path / "run/.ranks/nccl-rank-")
    assert variables == ({set_by_user: "/elsewhere/of-rank-"} if set_by_user else {FLIGHT_RECORDER[0]: here})


def test_the_variables_of_the_flight_recorder_are_those_of_this_torch():
    with open(Path(torch.__file__).parent / "lib/libtorch_cpu.so", "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            assert all(library.find(b"\0" + name.encode() + b"\0") > 0 for name in FLIGHT_RECORDER)
            assert library.find(b"\0TORCH_FR_NO_SUCH_NAME\0") < 0


def test_a_start_removes_files_of_an_earlier_one(tmp_path):
    ranks = tmp_path / ".ranks"
    ranks.mkdir()
    for path in (tmp_path / "stalled.json", ranks / "rank-00003.json", ranks / "nccl-rank-3", tmp_path / "run.json"):
        path.touch()
    forget_earlier(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {".ranks", "run.json"}


def test_a_file_system_that_does_not_answer_is_warned_of_once_and_waited_for(tmp_path, monkeypatch, capsys):
    (tmp_path / FOLDER).mkdir()
    monkeypatch.setattr("amplify_ds.training.watchdog.SECONDS_OF_A_SLOW_DISK", 0.1)
    write = rank_files.write
    slow = iter([0, 1, 1])
    monkeypatch.setattr(rank_files, "write", lambda *record: (time.sleep(next(slow, 0)), write(*record)))
    watch = Watchdog(tmp_path, 0, 1, 0.0, job=5)
    watch.beat_seconds = 0.05
    watch.start()
    time.sleep(2.5)
    watch.close()
    assert capsys.readouterr().err.count("has not answered for 0.1 s") == 1
    assert rank_files.read(tmp_path, 0)["beat"] > 3
