"""Proteins for a model: records (name, sequence) are checked in one pass, before anything is computed, then read again.

Blanks and a `*` at the end of a sequence are removed, lower case counts as upper case, `<mask>` and `<unk>` are tokens;
every other character that is no token becomes one <unk> and is counted. Gaps of an alignment, an empty sequence, a name
that is missing and one that appears twice are refused. The check keeps 8 bytes per protein in memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import xxhash

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.records import Records, Sequences
from amplify_ds.prepare.batches import quoted
from amplify_ds.vocab import TOKENS, encode

LONGEST_NAME = 2**16 - 1  # bytes, of a name in an archive
_LETTERS = {token for token in TOKENS if len(token) == 1}
_WITHIN, _ADDED = ("<mask>", "<unk>"), ("<bos>", "<eos>", "<pad>")  # tokens within a sequence, and those that we add


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


def proteins(records: Records | Sequences) -> Iterator[Protein]:
    for name, sequence in records:
        yield Protein(name, encode(_cleaned(sequence)))


def check(
    records: Records | Sequences, strict: bool = False, progress: Callable[[int], object] = lambda proteins: None
) -> Contents:
    """Read all records once. Raises AmplifyError for what cannot be embedded or scored; strict: for <unk> too."""
    digest, hashes = hashlib.sha256(), array("Q")
    unknown: Counter[str] = Counter()
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
    notes: Counter[str] = +records.notes if isinstance(records, Records) else Counter()
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
        raise AmplifyError(
            f"{records}: {len(twice):,} names appear more than once: {quoted(twice)}. A name, the "
            "first word of the header, must tell proteins apart: rename or remove them, take the whole header (--names "
            "header), or give --duplicates skip (all but the first) or number"
        )


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(errors="replace"))


def _cleaned(sequence: str) -> str:
    return "".join(sequence.split()).rstrip("*")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
