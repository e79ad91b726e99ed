"""A short torture: see torture.py. `bash tests/system/torture.sh` is the long one."""

import pytest

from tests.support.commands import run
from tests.support.needs import needs_environment


@pytest.mark.slow
@needs_environment
def test_a_run_that_was_killed_is_the_run_nobody_disturbed():
    result = run("bash", "tests/system/torture.sh", 1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rows in the same order; losses equal to the bit over" in result.stdout
