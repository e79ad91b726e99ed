"""What every reader gives: records in batches; and what it raises where a file is malformed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

LONGEST_RECORD = 2**25  # bytes; the longest known protein has 45,000 residues
# What some files hold beside proteins, known by its header.
_OTHERS = (
    ("nucleic acid chains (mol:na)", b"mol:na", re.compile(r"\S+\s+mol:na\b")),
    ("secondary structure (ss_pred, ss_conf, ss_dssp)", b"ss_", re.compile(r"ss_(pred|conf|dssp)(\s|$)")),
)


class Batch(NamedTuple):
    """Records as they are in the input.

    names: of each record, the FASTA header or what a table says, "" where there is nothing. text: a sequence per line.
    ids: the short names, where they are not the first words of `names`. left_out: how many records are not among these,
    by reason. noted: what else a report should say, and how often it was. named: whether there are names at all.
    """

    names: list[str]
    text: bytes
    ids: list[str] | None = None
    left_out: Mapping[str, int] = {}
    noted: Mapping[str, int] = {}
    named: bool = True

    @classmethod
    def of(cls, names: list[str], sequences: Sequence[bytes], **others: Any) -> Batch:
        """Line breaks within a sequence are removed, as those of FASTA are."""
        text = b"\n".join(sequences)
        if text.count(b"\n") >= max(1, len(sequences)):
            text = b"\n".join([sequence.replace(b"\n", b"") for sequence in sequences])
        return cls(names, text.replace(b"\r", b"") if b"\r" in text else text, **others)

    @property
    def records(self) -> int:
        """How many records were read, those that are left out among them."""
        return len(self.names) + sum(self.left_out.values())

    @property
    def sequences(self) -> list[bytes]:
        return self.text.split(b"\n") if self.names else []

    def short_names(self) -> list[str]:
        """The ids: of a FASTA header the first word, "" where there is none."""
        return self.ids if self.ids is not None else [(name.split(None, 1) or [""])[0] for name in self.names]


class Malformed(Exception):
    """What is wrong, and in which line of the stream (1 is the first); None where lines mean nothing."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def without_others(
    names: list[str], sequences: list[bytes], joined: bytes
) -> tuple[list[str], list[bytes], Counter[str]]:
    """Leave out the records whose headers say that they are no proteins; joined: all headers, to look quickly."""
    left_out: Counter[str] = Counter()
    for reason, marker, pattern in _OTHERS:
        if marker in joined:
            keep = [not pattern.match(name) for name in names]
            left_out[reason] = len(keep) - sum(keep)
            names = [name for name, kept in zip(names, keep) if kept]
            sequences = [sequence for sequence, kept in zip(sequences, keep) if kept]
    return names, sequences, +left_out


def decoded(text: bytes) -> str:
    """Names are UTF-8, or else Latin-1, in which every byte is a letter."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def lines_in(text: bytes) -> int:
    """Count the line ends, "\\n", "\\r\\n" and "\\r"."""
    count = text.count(b"\n")
    return count + text.count(b"\r") - text.count(b"\r\n") if b"\r" in text else count


def quoted(names: Iterable[str], most: int = 5) -> str:
    """Some of the names for a message."""
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
