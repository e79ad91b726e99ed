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
    r"has shown no sign of life": "does not respond",
    r"is to do other work": "say what it does",
    r"asked for is": "the requested …",
    r"of which nobody": "which nobody",
    r"\b(is|was|were) asked\b": "has a stop request, or receives a query",
    r"stands? (here|there)\b": "is, or appears",
    r"\bmay stand\b": "may be, or may appear",
    r"what stands": "the thing itself: residues, values, lines",
    r"its words go": "its messages are written to",
    r"\b(told|said|heard|theirs)\b": "the thing itself: messages, result, signals, expected",
    r"\bsays? of\b": "reports about, or returns",
    r"on the way back": "in the backward pass",
    r"laid end to end": "concatenated",
    r"of another vocabulary": "with other ids",
    r"of another kind": "any other",
    r"so that what else": "say the result",
    r"going on with|\bgoes on\b": "continues",
    r"\bwhichever\b": "any, or for every",
    r"\b(everybody|whoever)\b": "all ranks, or every caller",
    r"what is left\b": "the remaining processes",
    r"what (it|they) (holds?|says?|knows?)\b": "its content, message or state",
    r"\bbesides\b": "also, or in addition",
    r"\bstrangers?\b": "other connections, or unknown files",
    r"\btakes? part\b": "say what it does",
    r"\bwins? over\b": "overrides",
    r"is judged|\bjudge\b": "is checked, or is determined",
    r"\bonce more\b": "again",
    r"\bbeforehand\b": "in advance",
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
