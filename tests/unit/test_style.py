"""ruff and mypy pass with the settings of pyproject.toml; exceptions are few and give a reason."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import needs_tools
from tests.support.paths import ROOT

FOLDERS = ("amplify_ds", "data_prep", "launch", "tests")


def check(*arguments: str) -> None:
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.fail(f"python -m {' '.join(arguments)}\n{result.stdout}{result.stderr}", pytrace=False)


@needs_tools("ruff")
def test_ruff_finds_nothing():
    check("ruff", "check")


@needs_tools("ruff")
def test_the_code_is_formatted():
    check("ruff", "format", "--check")


@pytest.mark.slow  # half a minute without a cache
@needs_tools("mypy")
def test_types():
    check("mypy")


def comments(pattern: str) -> list[str]:
    """Return file, line and text of the comments that match `pattern`, in all files except this one."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]
    return [
        f"{path.relative_to(ROOT)}:{number}: {comment}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for comment in re.findall("#.*", line)
        if re.search(pattern, comment)
    ]


def test_ignored_types_are_few_and_give_a_reason():
    ignored = comments(r"type:\s*ignore")
    assert len(ignored) <= 12
    assert not [comment for comment in ignored if not re.search(r": # type: ignore\[[a-z, -]+\]  # \w", comment)]


def test_only_tables_are_left_unformatted():
    skipped = comments(r"fmt:\s*(skip|off)")
    assert len(skipped) <= 12
    assert not [comment for comment in skipped if not re.search(r": # a table.*  # fmt: skip$", comment)]
