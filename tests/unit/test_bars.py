"""Bars are for terminals that can draw them: logs have none."""

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
    bars.print_line("said")
"""


def written(shown: bool, terminal: bool, encoding: str) -> str:
    """What comes out on standard error."""
    reading, writing = open_terminal(80) if terminal else os.pipe()
    words = [sys.executable, "-c", CODE.format(shown=shown)]
    subprocess.run(
        words, cwd=ROOT, stderr=writing, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=60, check=True
    )
    return read_to_end(reading, writing).decode()


@pytest.mark.parametrize(("encoding", "half"), [("utf-8", "█"), ("ascii", "#")])
def test_on_a_terminal_there_is_a_bar_in_letters_that_it_has(encoding, half):
    found = written(True, True, encoding)
    assert "1/2" in found and half in found and found.isascii() == (encoding == "ascii") and "said" in found


@pytest.mark.parametrize(("shown", "terminal"), [(True, False), (False, True)])
def test_there_is_none_in_a_log_or_where_it_is_not_wanted(shown, terminal):
    assert written(shown, terminal, "utf-8").split() == ["said"]
