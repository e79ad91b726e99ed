"""Paths, names and commands in CONTRIBUTING.md and CHANGELOG.md exist."""

import re

import amplify_ds
from amplify_ds.__main__ import COMMANDS
from tests.support.paths import ROOT

FOLDERS = ("", "amplify_ds")  # paths are relative to the top directory or the package


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find(path: str):
    return next((ROOT / folder / path for folder in FOLDERS if (ROOT / folder / path).exists()), None)


def in_backticks(text: str) -> set[str]:
    return set(re.findall("`([^`]+)`", re.sub("^```.*?^```", "", text, flags=re.M | re.S)))


def test_paths_exist():
    paths = set(re.findall(r"[\w./-]*/[\w.-]+\w", text_of("CONTRIBUTING.md")))
    assert {"tests/run.sh", "prepare/formats.py", "amplify_ds/hub/layouts.py", "tests/recorded/kept"} <= paths
    assert not {path for path in paths if find(path) is None and not path.startswith(".venv/")}


def test_names_to_change_are_in_the_files_given_with_them():
    text = text_of("CONTRIBUTING.md")
    sections = re.split("^## ", text, flags=re.M)
    guides = [section for section in sections if section.startswith("Add ")]
    assert [section.splitlines()[0] for section in guides] == [
        "Add a source of sequences",
        "Add a weight layout",
        "Add an optimizer",
    ]
    for section in guides:
        terms = in_backticks(section)
        files = [find(term) for term in terms if re.search(r"/.*\.py$", term)]
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        names = {term.split(".")[-1] for term in terms if re.fullmatch(r"[\w.]+", term) and len(term) > 3}
        assert len(files) > 3 and len(names) > 5
        assert not {name for name in names if not re.search(rf"\b{name}\b", code)}, section


def test_the_changelog_has_the_current_version_and_existing_commands():
    text = text_of("CHANGELOG.md")
    assert f"the next one is {amplify_ds.__version__}" in text or f"\n## [{amplify_ds.__version__}]" in text
    added = text.partition("### Added")[2].partition("### Changed")[0]
    commands = {"build", "decontaminate", "inspect", "fetch", "launch", "preflight", "evaluate", "embed", "score"}
    assert commands | {"contacts", "export"} <= COMMANDS.keys() & in_backticks(added)
