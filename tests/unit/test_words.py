"""Phrases that were replaced by plain English stay out of code, messages and documents."""

import re

import pytest

from tests.support.paths import ROOT

FOLDERS = ("amplify_ds", "data_prep", "launch", "docs", "ds_configs")
FILES = sorted(
    path
    for directory in (*(ROOT / folder for folder in FOLDERS), ROOT)
    for path in (directory.rglob("*") if directory != ROOT else directory.glob("*.md"))
    if path.suffix in (".py", ".sh", ".yaml", ".md", ".sbatch")
)
COUNTED = "tokens|rows|vectors?|steps|residues|nats|seconds|GiB|blocks|sequences|windows"
UNITS = "step|token|row|protein|device|second|epoch|target|residue|machine|micro batch|GPU"
# {regular expression of a phrase: what to write instead}
INSTEAD = {
    rf"\b({COUNTED}) an? ({UNITS})\b": "tokens per step, one vector per protein",
    r"does not hold\b(?! a)": "is invalid",
    r"is the run of another": "was started with different settings",
    r"stands? here a second time|stands there twice": "appears twice",
    r"do(es)? not go with": "is not supported together with",
    r"\b(to|and|how to) mend\b|instead of mending": "fix, or normalise",
    r"with the words that": "the error shows the command",
    r"\bCollective\.": "Must be called on every rank.",
    r"at the next look": "at the next check",
}


@pytest.mark.parametrize("phrase", INSTEAD)
def test_phrase_stays_out(phrase):
    matches = [
        f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}: {match[0]}"
        for path in FILES
        for text in [path.read_text(encoding="utf-8")]
        for match in re.finditer(phrase, text)
    ]
    assert not matches, f"write {INSTEAD[phrase]!r}:\n" + "\n".join(matches)


def test_the_files_are_there():
    assert len(FILES) > 150 and ROOT / "README.md" in FILES
