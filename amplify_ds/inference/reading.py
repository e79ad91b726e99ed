"""Proteins for a model: records (name, sequence) are checked in one pass, before anything is computed, then read again.

An input is whatever amplify_ds/prepare reads. A name is the first word of a FASTA header, or what a table's column of
names says (a table without one: the number of the row, from 0). Blanks and a `*` at the end of a sequence are removed,
lower case counts as upper case, `<mask>` and `<unk>` are tokens; every other character that is no token becomes one
<unk> and is counted. Gaps of an alignment, an empty sequence, a name that is missing and one that appears twice are
refused. The check keeps 8 bytes per protein in memory; to skip or number duplicates, all names are kept.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import xxhash

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.batches import Batch
from amplify_ds.prepare.options import Reading
from amplify_ds.prepare.readers import read_stream
from amplify_ds.prepare.sources import STANDARD_INPUT, find_sources
from amplify_ds.prepare.streams import Http
from amplify_ds.vocab import TOKENS, encode

NAMES, DUPLICATES = ("id", "header"), ("refuse", "skip", "number")
LONGEST_NAME = 2**16 - 1  # bytes, of a name in an archive
_LETTERS = {token for token in TOKENS if len(token) == 1}
_WITHIN, _ADDED = ("<mask>", "<unk>"), ("<bos>", "<eos>", "<pad>")  # tokens within a sequence, and those that we add
_SHOWN = 5  # names in a message


class Protein(NamedTuple):
    name: str
    tokens: np.ndarray  # uint8 [residues], without <bos> and <eos>


@dataclass(frozen=True)
class Contents:
    """What the check found. longest_name: characters. unknown: how often each character that is no token appears.
    sha256: of it all. notes: what was left out or changed on the way, {what: how often}."""

    proteins: int
    residues: int
    longest_name: int
    unknown: Counter[str]
    sha256: str
    notes: Mapping[str, int] = field(default_factory=dict)


class Records:
    """(name, sequence) of each record of an input (a file, a pattern, a folder … see prepare/sources.py, in any form);
    can be iterated over again. names: "id" or "header", all of it. duplicates, of names: "refuse" (see `check`), "skip"
    all but the first, "number" them. notes: of the last time, what was left out or changed."""

    def __init__(
        self, address: str | Path, reading: Reading = Reading(), names: str = "id", duplicates: str = "refuse",
        tell: Callable[[str], object] = lambda note: None,
    ) -> None:  # fmt: skip
        for option, value, known in (("names", names, NAMES), ("duplicates", duplicates, DUPLICATES)):
            if value not in known:
                raise AmplifyError(f"--{option} is {value!r}, expected {', '.join(known)}")
        self.address, self.reading, self.names, self.duplicates = str(address), reading, names, duplicates
        self.notes: Counter[str] = Counter()
        self._tell = tell
        self._spooled: tempfile._TemporaryFileWrapper | None = None

    def __str__(self) -> str:
        return STANDARD_INPUT if self.address == "-" else self.address

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.notes.clear()
        seen: dict[str, int] = {}
        number = 0
        for batch in self._batches():
            self.notes.update(batch.left_out)
            self.notes.update(batch.noted)
            names = batch.names if self.names == "header" else batch.short_names()
            for name, sequence in zip(names, batch.sequences):
                name = name if batch.named else str(number)
                number += 1
                if self.duplicates != "refuse" and (name := self._told_apart(name, seen)) is None:
                    continue
                yield name, sequence.decode(errors="replace")

    def _told_apart(self, name: str, seen: dict[str, int]) -> str | None:
        """The name, numbered if it was seen before; None to skip it."""
        first, wanted = name not in seen, name
        if not first and self.duplicates == "skip":
            self.notes["skipped: the name appeared before"] += 1
            return None
        while wanted in seen:
            seen[name] += 1
            wanted = f"{name}_{seen[name]}"
        self.notes["numbered: the name appeared before"] += not first
        seen[wanted] = 1
        return wanted

    def _batches(self) -> Iterator[Batch]:
        if self.address == "-" or self.address.startswith(("http://", "https://")):
            yield from read_stream(self._spool(), str(self), self.reading, lambda read: None)
            return
        if not Path(self.address).exists() and not has_magic(self.address) and ":" not in self.address:
            raise AmplifyError(f"{self.address}: there is no such file or folder; expected proteins")
        tell, self._tell = self._tell, lambda note: None  # once
        for source in find_sources([self.address], self.reading, tell):
            yield from source.read()

    def _spool(self) -> str:
        """What passes once, as a file that is removed with this object: it is read more than once."""
        if self._spooled is None:
            self._spooled = tempfile.NamedTemporaryFile(suffix=PurePath(self.address).suffix)
            shutil.copyfileobj(sys.stdin.buffer if self.address == "-" else Http(self.address), self._spooled)
            self._spooled.flush()
        return self._spooled.name


class Sequences(list):
    """(name, sequence) pairs that are in memory already."""

    def __str__(self) -> str:
        return "the sequences"


def records_of(sequences: str | Path | Mapping[str, str] | Iterable[str]) -> Records | Sequences:
    """A file by its path, {name: sequence}, or plain sequences, which are named 0, 1, …"""
    if isinstance(sequences, (str, Path)):
        return Records(sequences)
    if isinstance(sequences, Mapping):
        return Sequences(sequences.items())
    return Sequences((str(number), sequence) for number, sequence in enumerate(sequences))


def proteins(records: Records | Sequences) -> Iterator[Protein]:
    for name, sequence in records:
        yield Protein(name, encode(_cleaned(sequence)))


def check(
    records: Records | Sequences, strict: bool = False, progress: Callable[[int], object] = lambda proteins: None
) -> Contents:
    """Read all records once. Raises AmplifyError for what cannot be embedded or scored; strict: for <unk> too."""
    digest, hashes, unknown = hashlib.sha256(), array("Q"), Counter()
    residues = longest = 0
    for number, (name, sequence) in enumerate(records, 1):
        sequence = _cleaned(sequence)
        where = f"{records}: record {number:,} ({name[:60] or sequence[:20]!r})"
        if not name or not sequence:
            lacking = "has an empty sequence" if name else "has no name"
            raise AmplifyError(f"{where} {lacking}; remove or fix it")
        if len(name.encode()) > LONGEST_NAME:
            raise AmplifyError(
                f"{where} has a name of {len(name.encode()):,} bytes, expected at most {LONGEST_NAME:,}: shorten it, "
                "or take the first word only (--names id)"
            )
        if foreign := _foreign(sequence):
            _refuse(foreign, where, strict)
            unknown.update({letter: sequence.upper().count(letter) for letter in foreign})
        digest.update(f">{name}\n{sequence}\n".encode(errors="replace"))
        hashes.append(_hash(name))
        residues, longest = residues + len(encode(sequence)), max(longest, len(name))
        progress(1)
    notes = +getattr(records, "notes", Counter())
    if not hashes:
        raise AmplifyError(f"{records}: holds no protein{_left_out(notes)}")
    _refuse_duplicates(records, np.frombuffer(hashes, dtype=np.uint64))
    return Contents(len(hashes), residues, longest, unknown, digest.hexdigest(), notes)


def describe_unknown(contents: Contents) -> str | None:
    """A line for the user, when characters were read as <unk>, or records left out or changed."""
    parts = [f"{count:,} {what}" for what, count in contents.notes.items()]
    if contents.unknown:
        counted = ", ".join(f"{letter!r} {count:,}" for letter, count in sorted(contents.unknown.items()))
        parts.append(f"read as <unk>: {contents.unknown.total():,} of {contents.residues:,} characters ({counted})")
    return "; ".join(parts) or None


def _foreign(sequence: str) -> set[str]:
    """The characters that are no token; tokens that are added to every sequence as they are spelt."""
    if "<" in sequence:
        found = {token for token in _ADDED if token in sequence}
        for token in _WITHIN + _ADDED:
            sequence = sequence.replace(token, "")
        return found | set(sequence.upper()) - _LETTERS
    return set(sequence.upper()) - _LETTERS


def _refuse(foreign: set[str], where: str, strict: bool) -> None:
    if added := foreign & set(_ADDED):
        raise AmplifyError(f"{where} holds {_quoted(added)}, which is put around every sequence; remove it")
    if gaps := foreign & {"-", "."}:
        raise AmplifyError(
            f"{where} holds {_quoted(gaps)}, gaps of an alignment: --alignment strip removes them, and reads "
            "insertions (small letters) as residues"
        )
    if strict:
        raise AmplifyError(
            f"{where} holds {_quoted(foreign)}, which the model does not know; fix it, or leave out --strict "
            "(strict=True) to read such characters as <unk>"
        )


def _left_out(notes: Mapping[str, int]) -> str:
    return "".join(f", {count:,} {what}" for what, count in notes.items())


def _refuse_duplicates(records: Records | Sequences, hashes: np.ndarray) -> None:
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    names = Counter(name for name, _ in records if _hash(name) in suspects)
    if twice := sorted(name for name, count in names.items() if count > 1):
        more = f" and {len(twice) - _SHOWN:,} more" if len(twice) > _SHOWN else ""
        raise AmplifyError(
            f"{records}: {len(twice):,} names appear more than once: {_quoted(twice[:_SHOWN])}{more}. A name, the "
            "first word of the header, must tell proteins apart: rename or remove them, take the whole header (--names "
            "header), or give --duplicates skip (all but the first) or number"
        )


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(errors="replace"))


def _cleaned(sequence: str) -> str:
    return "".join(sequence.split()).rstrip("*")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
