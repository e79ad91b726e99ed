"""A short torture: see torture.py. `bash tests/torture.sh` is the long one."""

from conftest import run
from needs import needs_environment


@needs_environment
def test_a_run_that_was_killed_is_the_run_nobody_disturbed():
    result = run("bash", "tests/torture.sh", 1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rows in the same order; losses equal to the bit over" in result.stdout
