"""A clock that is set back, and files that a file server shows late."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from amplify_ds.errors import AmplifyError
from amplify_ds.plot import read_scalars
from amplify_ds.training import event_files, shared_files


def log(folder: Path, steps: range, offset: int) -> None:
    """Log these steps as a new job of a run does, with the value offset + step."""
    event_files.put_before_now(folder)
    writer = SummaryWriter(folder, purge_step=steps[0])
    for step in steps:
        writer.add_scalar("train/loss", offset + step, step)
    writer.close()


def test_a_run_resumed_after_the_clock_was_set_back_shows_its_later_points(tmp_path, monkeypatch):
    now, shift = time.time, [0, -3600, -3590, -86400]
    for number, begin in enumerate((1, 4, 6, 8)):
        monkeypatch.setattr(time, "time", lambda number=number: now() + shift[number])
        log(tmp_path / "events", range(begin, begin + 5), 100 * number)
    assert len(list((tmp_path / "events").iterdir())) == 4
    steps, values = read_scalars(tmp_path)["train/loss"]
    assert steps == list(range(1, 13))
    assert values == [1, 2, 3, 104, 105, 206, 207, 308, 309, 310, 311, 312]


def test_names_in_order_stay_as_they_are(tmp_path):
    names = [f"events.out.tfevents.17000000{n:02d}.host.{9 - n}.0" for n in range(3)]
    for name in names:
        (tmp_path / name).touch()
    event_files.put_before_now(tmp_path)
    assert sorted(os.listdir(tmp_path)) == names


def test_a_file_that_appears_late_is_waited_for(tmp_path):
    late = tmp_path / "run"
    threading.Timer(0.5, late.mkdir).start()
    began = time.monotonic()
    shared_files.wait_for(late, 20)
    assert 0.4 < time.monotonic() - began < 10
    with pytest.raises(AmplifyError, match="absent: rank 0 has written it, but .* does not see it after 0.1 s"):
        shared_files.wait_for(tmp_path / "absent", 0.1)


def test_a_stale_handle_is_tried_again_and_a_missing_permission_is_not(tmp_path, monkeypatch):
    stat, answers = Path.stat, [errno.ESTALE, errno.ENOENT]
    monkeypatch.setattr(Path, "stat", lambda self: raises(answers.pop(0)) if answers else stat(self))
    shared_files.wait_for(tmp_path, 20)
    assert not answers
    monkeypatch.setattr(Path, "stat", lambda self: raises(errno.EACCES))
    with pytest.raises(PermissionError):
        shared_files.wait_for(tmp_path, 20)


def raises(number: int):
    raise OSError(number, os.strerror(number))
