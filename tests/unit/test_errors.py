"""Messages for errors that libraries raise."""

import pytest

from amplify_ds.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"), [(OSError("\n no route\nin frame 7"), "no route"), (TimeoutError(), "TimeoutError")]
)
def test_first_line_or_class_name(error, line):
    assert first_line(error) == line
