"""TensorBoard events on a disk that is full for a while, read back by TensorBoard's own reader."""

import errno
import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amplify_ds.training import events
from amplify_ds.training.events import Events


def points(folder, tag="train/loss"):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(x.step, x.value) for x in accumulator.Scalars(tag)] if tag in accumulator.Tags()["scalars"] else []


class FullDisk:
    """Stands in for the file. While the disk is full, `write` writes half of the data before it fails."""

    full = False

    def __init__(self, file):
        self._file = file

    def write(self, data):
        if self.full:
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data[:100])  # a file may write less than it is given

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(FullDisk, "full", False)
    monkeypatch.setattr(events, "open", lambda *a, **k: FullDisk(open(*a, **k)), raising=False)
    return FullDisk


def test_no_point_is_lost_and_one_warning_names_the_file(tmp_path, disk, capfd):
    lines = []
    with Events(tmp_path / "events", 0, lines.append) as log:
        for step in range(1, 31):
            disk.full = 11 <= step <= 20
            log.add_scalar("train/loss", step / 2, step)
            log.flush()
            if step == 20:
                assert points(tmp_path / "events") == [(s, s / 2) for s in range(1, 11)], "whole events only"
    assert points(tmp_path / "events") == [(step, step / 2) for step in range(1, 31)]
    assert len(lines) == 2 and str(log.path) in lines[0] and "No space left" in lines[0] and "written again" in lines[1]
    assert capfd.readouterr() == ("", "")


def test_memory_is_bounded_and_what_was_dropped_is_counted(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(events, "MOST_WAITING", 1000)
    lines = []
    disk.full = True
    with Events(tmp_path / "events", 0, lines.append) as log:
        for step in range(1, 101):
            log.add_scalar("train/loss", step, step)
            log.flush()
        disk.full = False
    left = points(tmp_path / "events")
    assert left == [(step, step) for step in range(left[0][0], 101)] and 5 < len(left) < 50
    assert f"the oldest {100 - len(left) + 2:,} events were dropped" in lines[1], (
        "the first two events describe the file"
    )


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path):
    (tmp_path / "events").write_text("in the way")
    lines = []
    with Events(tmp_path / "events", None, lines.append) as log:
        log.add_scalar("train/loss", 1.0, 1)
    assert len(lines) == 1 and "Training continues" in lines[0]


def test_steps_that_are_logged_again_are_replaced(tmp_path):
    with Events(tmp_path, 0, print) as log:
        for step in (1, 2, 3, 4):
            log.add_scalar("train/loss", step, step)
    os.rename(log.path, log.path.with_name("events.out.tfevents.1.first"))
    with Events(tmp_path, 3, print) as log:
        log.add_scalar("train/loss", 30, 3)
    assert points(tmp_path) == [(1, 1), (2, 2), (3, 30)]
