"""Batches of records, which every reader yields, and the error it raises for a malformed input."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

LONGEST_RECORD = 2**25  # bytes; the longest known protein has 45,000 residues
# Records that are not proteins, recognised by their headers: reason, quick test, pattern.
_NOT_PROTEINS = (
    ("nucleic acid chains (mol:na)", b"mol:na", re.compile(r"\S+\s+mol:na\b")),
    ("secondary structure (ss_pred, ss_conf, ss_dssp)", b"ss_", re.compile(r"ss_(pred|conf|dssp)(\s|$)")),
)


class Batch(NamedTuple):
    """Records as they are in the input.

    names: the FASTA header of each record or its name in a table, "" if it has none. text: one sequence per line.
    ids: the short names, unless they are the first words of `names`. left_out: the number of records left out, by
    reason. noted: other counts for the report. named: whether the input has names at all.
    """

    names: list[str]
    text: bytes
    ids: list[str] | None = None
    left_out: Mapping[str, int] = {}
    noted: Mapping[str, int] = {}
    named: bool = True

    @classmethod
    def of(cls, names: list[str], sequences: Sequence[bytes], **fields: Any) -> Batch:
        """Return a batch of these sequences, without the line breaks in them, as in FASTA."""
        text = b"\n".join(sequences)
        if text.count(b"\n") >= max(1, len(sequences)):
            text = b"\n".join([sequence.replace(b"\n", b"") for sequence in sequences])
        return cls(names, text.replace(b"\r", b"") if b"\r" in text else text, **fields)

    @property
    def records(self) -> int:
        """The number of records read, including those left out."""
        return len(self.names) + sum(self.left_out.values())

    @property
    def sequences(self) -> list[bytes]:
        return self.text.split(b"\n") if self.names else []

    def short_names(self) -> list[str]:
        """Return the ids: of a FASTA header the first word, "" if it is empty."""
        return self.ids if self.ids is not None else [(name.split(None, 1) or [""])[0] for name in self.names]


class Malformed(Exception):
    """Raised for a malformed input. line: where in the stream, counted from 1; None if it has no lines."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def drop_non_proteins(
    names: list[str], sequences: list[bytes], joined: bytes
) -> tuple[list[str], list[bytes], Counter[str]]:
    """Return the records without those whose headers say they are not proteins, and the counts of these by reason.

    joined: all headers, for a quick test.
    """
    left_out: Counter[str] = Counter()
    for reason, marker, pattern in _NOT_PROTEINS:
        if marker in joined:
            is_protein = [not pattern.match(name) for name in names]
            left_out[reason] = len(is_protein) - sum(is_protein)
            names = list(compress(names, is_protein))
            sequences = list(compress(sequences, is_protein))
    return names, sequences, +left_out


def decoded(text: bytes) -> str:
    """Return a name as text: UTF-8, or else Latin-1, which every byte string is."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def lines_in(text: bytes) -> int:
    """Return the number of line ends: "\\n", "\\r\\n" and "\\r"."""
    count = text.count(b"\n")
    return count + text.count(b"\r") - text.count(b"\r\n") if b"\r" in text else count


def quoted(names: Iterable[str], most: int = 5) -> str:
    """Return the first names in quotes, for a message, and how many more there are."""
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
