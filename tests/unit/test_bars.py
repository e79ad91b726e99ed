"""Progress bars appear on terminals and not in logs."""

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.terminal import open_terminal, read_to_end

CODE = """
from amplify_ds import bars
with bars.bar(total=2, unit="step", shown={shown}) as bar:
    bar.update()
    bars.print_line("line")
"""


def written(shown: bool, terminal: bool, encoding: str) -> str:
    """Return what is written to standard error."""
    reading, writing = open_terminal(80) if terminal else os.pipe()
    command = [sys.executable, "-c", CODE.format(shown=shown)]
    subprocess.run(
        command, cwd=ROOT, stderr=writing, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=60, check=True
    )
    return read_to_end(reading, writing).decode()


@pytest.mark.parametrize(("encoding", "half"), [("utf-8", "█"), ("ascii", "#")])
def test_a_terminal_shows_a_bar_in_its_encoding(encoding, half):
    output = written(True, True, encoding)
    assert "1/2" in output and half in output and output.isascii() == (encoding == "ascii") and "line" in output


@pytest.mark.parametrize(("shown", "terminal"), [(True, False), (False, True)])
def test_there_is_no_bar_in_a_log_or_if_it_is_switched_off(shown, terminal):
    assert written(shown, terminal, "utf-8").split() == ["line"]
