"""Atomic writes, and locks that one process holds until it ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from amplify_ds import files
from amplify_ds.files import lock, replacing
from tests.support.paths import ROOT


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_only_at_the_end(tmp_path, before):
    file = tmp_path / "file"
    if before:
        file.write_text(before)
    expected = {file.name} if before else set()
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("ha")
        assert not before or file.read_text() == before
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == expected and (not before or file.read_text() == before)
    with replacing(file) as partial:
        partial.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {file.name} and file.read_text() == "new"


HOLD = """
import sys, time
from pathlib import Path
from amplify_ds.files import lock
held = lock(Path(sys.argv[1]))
print(held is not None, flush=True)
time.sleep(600)
"""


def test_one_process_holds_a_lock_until_it_is_killed(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert lock(path) is None
        began = time.monotonic()
        assert lock(path, 0.5) is None and time.monotonic() - began > 0.5
        threading.Timer(0.5, other.send_signal, [signal.SIGKILL]).start()
        with lock(path, 60) as held:
            assert not held.closed
    with lock(path):  # free again after it was closed
        assert lock(path) is None


def test_a_removed_lock_file_is_not_locked(tmp_path, monkeypatch):
    """Its owner removes it at the end; locking a file that was opened before would protect nothing."""
    path, acquire = tmp_path / "lock", files._acquire
    assert lock(tmp_path / "gone/lock") is None
    monkeypatch.setattr(files, "_acquire", lambda file, deadline: (path.unlink(), acquire(file, deadline)))
    assert lock(path) is None
    monkeypatch.setattr(
        files, "_acquire", lambda file, deadline: (path.unlink(), path.touch(), acquire(file, deadline))
    )
    assert lock(path) is None


def test_a_file_that_cannot_be_locked_is_an_error(tmp_path, monkeypatch):
    tries = []

    def refuse(file, operation):
        tries.append(Path(file.name))
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        lock(tmp_path / "lock")
    assert len(tries) == 1
    with pytest.raises(OSError, match="No locks available"):
        lock(tmp_path / "lock", 0.5)
    assert len(tries) > 2
