"""While a file server is away, a run waits for it, warns once and continues; real faults end the run."""

import errno

import pytest

from amplify_ds.errors import AmplifyError
from amplify_ds.training import saving
from amplify_ds.training.events import Events


class Checkpoints:
    """Stands in for training.retention.Checkpoints, whose writes fail with the given errors first."""

    run = "RUN"

    def __init__(self, *errors):
        self.errors, self.lines, self.written = list(errors), [], []

    def print_line(self, line):
        self.lines.append(line)

    def write(self, named_state, state):
        if self.errors:
            raise self.errors.pop(0)
        self.written.append(state)


def failed(number: int) -> AmplifyError:
    """As checkpoint.write raises it: the system's error is the cause."""
    error = AmplifyError("RUN/checkpoints/step-00000005: the checkpoint could not be written.")
    error.__cause__ = OSError(number, "as the system says")
    return error


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(saving, "SECONDS_BETWEEN_TRIES", 0.01)


def save(checkpoints) -> saving.BackgroundWriter:
    writer = saving.BackgroundWriter(checkpoints)
    writer.start([], {"step": 5})
    writer.wait()
    return writer


def test_a_checkpoint_is_written_when_the_server_is_back():
    checkpoints = Checkpoints(failed(errno.EIO), failed(errno.ESTALE), OSError(errno.ENOTCONN, "not connected"))
    assert save(checkpoints).problem is None
    assert checkpoints.written == [{"step": 5}]
    assert len(checkpoints.lines) == 1 and "could not be written. Trying again for 10 minutes" in checkpoints.lines[0]


def test_a_full_disk_is_no_outage():
    checkpoints = Checkpoints(failed(errno.ENOSPC))
    assert "could not be written" in str(save(checkpoints).problem)
    assert not checkpoints.written and not checkpoints.lines


def test_an_outage_that_does_not_end_is_a_problem(monkeypatch):
    monkeypatch.setattr(saving, "OUTAGE_SECONDS", 0.05)
    checkpoints = Checkpoints(*(failed(errno.EIO) for _ in range(1000)))
    assert "could not be written" in str(save(checkpoints).problem)
    assert checkpoints.errors


def test_events_go_on_when_the_open_file_has_died(tmp_path):
    """After an outage the server knows the file, but not the handle with which it was open."""
    lines = []
    with Events(tmp_path, None, lines.append) as log:
        log.add_scalar("loss", 1.0, 1)
        log.flush()
        log._file.close()
        log._file = Dead(log._file)
        log.add_scalar("loss", 0.5, 2)
        log.flush()
        log.flush()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log.path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 0.5)]
    assert len(lines) == 2 and "cannot be written" in lines[0] and "can be written again" in lines[1]


class Dead:
    """A file of which every operation fails."""

    def __init__(self, file):
        self.closed = False

    def __getattr__(self, name):
        raise OSError(errno.EIO, "Input/output error")
