"""Check records (name, sequence) in one pass before anything is computed, and convert them to tokens in a second one.

White space and a `*` at the end of a sequence are removed, and lower case is read as upper case. `<mask>` and `<unk>`
are tokens; every other character without a token is read as <unk> and counted. Alignment gaps, empty sequences and
missing or duplicate names are refused. The check keeps 8 bytes per protein in memory.
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

LONGEST_NAME = 2**16 - 1  # bytes; the limit for names in a zip archive
_LETTERS = {token for token in TOKENS if len(token) == 1}
_WITHIN, _ADDED = ("<mask>", "<unk>"), ("<bos>", "<eos>", "<pad>")  # allowed in the input; added by this package


class Protein(NamedTuple):
    name: str
    tokens: np.ndarray  # uint8 [residues], without <bos> and <eos>


@dataclass(frozen=True)
class InputStats:
    """Result of `check`. longest_name: characters. unknown: {character without a token: count}. sha256: of all names
    and sequences. notes: {reason: count} of records that were left out or changed."""

    proteins: int
    residues: int
    longest_name: int
    unknown: Counter[str]
    sha256: str
    notes: Mapping[str, int] = field(default_factory=dict)


def proteins(records: Records | Sequences) -> Iterator[Protein]:
    """Yield the records as proteins."""
    for name, sequence in records:
        yield Protein(name, encode(_cleaned(sequence)))


def check(
    records: Records | Sequences, strict: bool = False, progress: Callable[[int], object] = lambda proteins: None
) -> InputStats:
    """Read all records once and return their statistics.

    Raises AmplifyError for a record that cannot be embedded or scored; with strict also for characters without a token.
    """
    digest, hashes = hashlib.sha256(), array("Q")
    unknown: Counter[str] = Counter()
    residues = longest = 0
    for number, (name, sequence) in enumerate(records, 1):
        sequence = _cleaned(sequence)
        where = f"{records}: record {number:,} ({name[:60] or sequence[:20]!r})"
        if not name or not sequence:
            problem = "has an empty sequence" if name else "has no name"
            raise AmplifyError(f"{where} {problem}; remove or fix it")
        if len(name.encode()) > LONGEST_NAME:
            raise AmplifyError(
                f"{where} has a name of {len(name.encode()):,} bytes, the limit is {LONGEST_NAME:,}: shorten it, or "
                "use only the first word of the header (--names id)"
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
        raise AmplifyError(f"{records}: contains no protein{_left_out(notes)}")
    _refuse_duplicates(records, np.frombuffer(hashes, dtype=np.uint64))
    return InputStats(len(hashes), residues, longest, unknown, digest.hexdigest(), notes)


def describe_unknown(stats: InputStats) -> str | None:
    """Return a line about <unk> and about records that were left out or changed; None if there are none."""
    parts = [f"{count:,} {reason}" for reason, count in stats.notes.items()]
    if stats.unknown:
        counts = ", ".join(f"{letter!r} {count:,}" for letter, count in sorted(stats.unknown.items()))
        parts.append(f"read as <unk>: {stats.unknown.total():,} of {stats.residues:,} characters ({counts})")
    return "; ".join(parts) or None


def _foreign(sequence: str) -> set[str]:
    """Return the characters without a token, and the tokens of `_ADDED` that are spelt out in the sequence."""
    if "<" in sequence:
        added = {token for token in _ADDED if token in sequence}
        for token in _WITHIN + _ADDED:
            sequence = sequence.replace(token, "")
        return added | set(sequence.upper()) - _LETTERS
    return set(sequence.upper()) - _LETTERS


def _refuse(foreign: set[str], where: str, strict: bool) -> None:
    if added := foreign & set(_ADDED):
        raise AmplifyError(f"{where} contains {_quoted(added)}, which is added to every sequence; remove it")
    if gaps := foreign & {"-", "."}:
        raise AmplifyError(
            f"{where} contains {_quoted(gaps)}, gaps of an alignment: --alignment strip removes them, and reads "
            "insertions (lower-case letters) as residues"
        )
    if strict:
        raise AmplifyError(
            f"{where} contains {_quoted(foreign)}, for which the model has no token; fix it, or leave out --strict "
            "(strict=True) to read such characters as <unk>"
        )


def _left_out(notes: Mapping[str, int]) -> str:
    return "".join(f", {count:,} {reason}" for reason, count in notes.items())


def _refuse_duplicates(records: Records | Sequences, hashes: np.ndarray) -> None:
    values, counts = np.unique(hashes, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if not repeated:
        return
    names = Counter(name for name, _ in records if _hash(name) in repeated)
    if duplicates := sorted(name for name, count in names.items() if count > 1):
        raise AmplifyError(
            f"{records}: {len(duplicates):,} names appear more than once: {quoted(duplicates)}. Names (the first word "
            "of the header) must be unique: rename or remove the proteins, use the whole header (--names header), or "
            "give --duplicates skip (keep the first) or --duplicates number"
        )


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(errors="replace"))


def _cleaned(sequence: str) -> str:
    return "".join(sequence.split()).rstrip("*")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
