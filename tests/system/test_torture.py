"""A short run of torture.py; `bash tests/system/torture.sh` is the long one."""

import pytest

from tests.support.commands import run
from tests.support.needs import needs_environment


@pytest.mark.slow
@needs_environment
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one():
    result = run("bash", "tests/system/torture.sh", 1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rows in the same order; losses bitwise equal over" in result.stdout
