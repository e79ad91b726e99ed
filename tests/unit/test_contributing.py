"""CONTRIBUTING.md and CHANGELOG.md name what exists."""

import re

import amplify_ds
from amplify_ds.__main__ import COMMANDS
from tests.support.paths import ROOT

PLACES = ("", "amplify_ds")  # a path is given from the top, or from the package


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find(path: str):
    return next((ROOT / place / path for place in PLACES if (ROOT / place / path).exists()), None)


def in_backticks(text: str) -> set[str]:
    return set(re.findall("`([^`]+)`", re.sub("^```.*?^```", "", text, flags=re.M | re.S)))


def test_paths_exist():
    named = set(re.findall(r"[\w./-]*/[\w.-]+\w", text_of("CONTRIBUTING.md")))
    assert {"tests/run.sh", "prepare/formats.py", "amplify_ds/hub/layouts.py", "tests/recorded/kept"} <= named
    assert not {name for name in named if find(name) is None and not name.startswith(".venv/")}


def test_what_contributors_are_to_change_is_in_the_files_named_beside_it():
    text = text_of("CONTRIBUTING.md")
    sections = re.split("^## ", text, flags=re.M)
    added = [section for section in sections if section.startswith("Add ")]
    assert [section.splitlines()[0] for section in added] == [
        "Add a source of sequences",
        "Add a weight layout",
        "Add an optimizer",
    ]
    for section in added:
        terms = in_backticks(section)
        files = [find(term) for term in terms if re.search(r"/.*\.py$", term)]
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        names = {term.split(".")[-1] for term in terms if re.fullmatch(r"[\w.]+", term) and len(term) > 3}
        assert len(files) > 3 and len(names) > 5
        assert not {name for name in names if not re.search(rf"\b{name}\b", code)}, section


def test_the_changelog_has_the_version_and_commands_that_are_there():
    text = text_of("CHANGELOG.md")
    assert f"the next one is {amplify_ds.__version__}" in text or f"\n## [{amplify_ds.__version__}]" in text
    added = text.partition("### Added")[2].partition("### Changed")[0]
    commands = {"build", "decontaminate", "inspect", "fetch", "launch", "preflight", "evaluate", "embed", "score"}
    assert commands | {"contacts", "export"} <= COMMANDS.keys() & in_backticks(added)
