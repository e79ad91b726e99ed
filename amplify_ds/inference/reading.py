"""Proteins for a model: records (name, sequence) are checked in one pass, before anything is computed, then read again.

A name is the first word of a FASTA header. Blanks and a `*` at the end of a sequence are removed, lower case counts as
upper case; every other character that is no token becomes one <unk> and is counted. An empty sequence, a name that is
missing and a name that stands twice are refused. The check keeps 8 bytes a protein in memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import dnaio
import numpy as np
import xxhash

from amplify_ds.errors import AmplifyError, explain
from amplify_ds.vocab import TOKENS, encode_bytes

_LETTERS = {token for token in TOKENS if len(token) == 1}
_SHOWN = 5  # names in a message


class Protein(NamedTuple):
    name: str
    tokens: np.ndarray  # uint8 [residues], without <bos> and <eos>


@dataclass(frozen=True)
class Contents:
    """What the check found. unknown: how often each character that is no token stands there; sha256: of it all."""

    proteins: int
    residues: int
    longest_name: int
    unknown: Counter[str]
    sha256: str


class Fasta:
    """(name, sequence) of each record of a FASTA file, plain or compressed; can be iterated over again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if not self.path.is_file():
            raise AmplifyError(f"{self.path}: there is no such file; expected proteins in FASTA")
        try:
            with dnaio.open(self.path, fileformat="fasta") as reader:
                for record in reader:
                    yield record.id, record.sequence
        except (dnaio.FileFormatError, OSError, EOFError, ValueError) as error:
            raise AmplifyError(
                explain(error)
                or f'{self.path}: cannot be read as FASTA, which has lines such as ">name" and "MKV…": {error}'
            ) from None


class Sequences(list):
    """(name, sequence) pairs that are in memory already."""

    def __str__(self) -> str:
        return "the sequences"


def records_of(sequences: str | Path | Mapping[str, str] | Iterable[str]) -> Fasta | Sequences:
    """A FASTA file by its path, {name: sequence}, or plain sequences, which are named 0, 1, …"""
    if isinstance(sequences, (str, Path)):
        return Fasta(Path(sequences))
    if isinstance(sequences, Mapping):
        return Sequences(sequences.items())
    return Sequences((str(number), sequence) for number, sequence in enumerate(sequences))


def proteins(records: Fasta | Sequences) -> Iterator[Protein]:
    for name, sequence in records:
        yield Protein(name, np.frombuffer(encode_bytes(_cleaned(sequence).encode("ascii", "replace")), dtype=np.uint8))


def check(
    records: Fasta | Sequences, strict: bool = False, progress: Callable[[int], object] = lambda proteins: None
) -> Contents:
    """Read all records once. Raises AmplifyError for what cannot be embedded or scored; strict: for <unk> too."""
    digest, hashes, unknown = hashlib.sha256(), array("Q"), Counter()
    residues = longest = 0
    for number, (name, sequence) in enumerate(records, 1):
        sequence = _cleaned(sequence)
        if not name or not sequence:
            lacking = "has an empty sequence" if name else "has no name"
            raise AmplifyError(f"{records}: record {number:,} ({name or sequence[:20]!r}) {lacking}; remove or mend it")
        if foreign := set(sequence.upper()) - _LETTERS:
            if strict:
                raise AmplifyError(
                    f"{records}: record {number:,} ({name!r}) holds {_quoted(foreign)}, which the model does not know; "
                    "mend it, or leave out --strict (strict=True) to read such characters as <unk>"
                )
            unknown.update({letter: sequence.upper().count(letter) for letter in foreign})
        digest.update(f">{name}\n{sequence}\n".encode())
        hashes.append(_hash(name))
        residues, longest = residues + len(sequence), max(longest, len(name))
        progress(1)
    if not hashes:
        raise AmplifyError(f"{records}: holds no protein")
    _refuse_duplicates(records, np.frombuffer(hashes, dtype=np.uint64))
    return Contents(len(hashes), residues, longest, unknown, digest.hexdigest())


def describe_unknown(contents: Contents) -> str | None:
    """A line for the user, when characters were read as <unk>."""
    if not contents.unknown:
        return None
    counted = ", ".join(f"{letter!r} {count:,}" for letter, count in sorted(contents.unknown.items()))
    return f"read as <unk>: {contents.unknown.total():,} of {contents.residues:,} characters ({counted})"


def _refuse_duplicates(records: Fasta | Sequences, hashes: np.ndarray) -> None:
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    names = Counter(name for name, _ in records if _hash(name) in suspects)
    if twice := sorted(name for name, count in names.items() if count > 1):
        more = f" and {len(twice) - _SHOWN:,} more" if len(twice) > _SHOWN else ""
        raise AmplifyError(
            f"{records}: {len(twice):,} names stand more than once: {_quoted(twice[:_SHOWN])}{more}. A name, the first "
            "word of the header, must tell proteins apart; rename or remove them"
        )


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


def _cleaned(sequence: str) -> str:
    return "".join(sequence.split()).rstrip("*")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
