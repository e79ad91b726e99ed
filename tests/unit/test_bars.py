"""Bars are for terminals that can draw them: logs have none."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from tests.support.paths import ROOT

CODE = """
from amplify_ds import bars
with bars.bar(total=2, unit="step", shown={shown}) as bar:
    bar.update()
    bars.say("said")
"""


def written(shown: bool, terminal: bool, encoding: str) -> str:
    """What comes out on standard error."""
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [sys.executable, "-c", CODE.format(shown=shown)]
    subprocess.run(
        words, cwd=ROOT, stderr=writing, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=60, check=True
    )
    os.close(writing)
    found = b""
    try:
        while block := os.read(reading, 2**16):
            found += block
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(reading)
    return found.decode()


@pytest.mark.parametrize(("encoding", "half"), [("utf-8", "█"), ("ascii", "#")])
def test_on_a_terminal_there_is_a_bar_in_letters_that_it_has(encoding, half):
    found = written(True, True, encoding)
    assert "1/2" in found and half in found and found.isascii() == (encoding == "ascii") and "said" in found


@pytest.mark.parametrize(("shown", "terminal"), [(True, False), (False, True)])
def test_there_is_none_in_a_log_or_where_it_is_not_wanted(shown, terminal):
    assert written(shown, terminal, "utf-8").split() == ["said"]
