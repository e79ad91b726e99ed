"""A file that is written is complete, or as it was before."""

import pytest

from amplify_ds.files import replacing


@pytest.mark.parametrize("before", [None, "old"])
def test_what_is_written_counts_at_the_end_only(tmp_path, before):
    file = tmp_path / "file"
    if before:
        file.write_text(before)
    there = {file.name} if before else set()
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("ha")
        assert not before or file.read_text() == before
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == there and (not before or file.read_text() == before)
    with replacing(file) as partial:
        partial.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {file.name} and file.read_text() == "new"
