"""Structures, or sequences with or without contact files -> checked targets, all in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.extras import require
from amplify_ds.inference.contacts.targets import Target, read_contacts
from amplify_ds.inference.reading import Contents, check, proteins
from amplify_ds.inference.records import Records, Sequences

Progress = Callable[[int], object]


def from_structures(
    words: Sequence[str], progress: Progress, strict: bool = False, left_out: dict[str, str] | None = None
) -> tuple[list[Target], Contents]:
    """Of a folder, files or FILE:CHAIN. progress: structures.

    left_out: {name: why} is added of each that cannot be used (structures.py). Raises AmplifyError, which lists these
    all, where no other is left, and for any of them without `left_out`.
    """
    require("gemmi", "reading structures")
    from amplify_ds.inference.contacts import structures

    places = structures.find(words)
    counts = Counter(structures.named(*place) for place in places)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise AmplifyError(
            f"{len(twice):,} structures appear more than once: {', '.join(twice[:5])}; give each once, and files of "
            "different names"
        )
    records, contacts, unusable = Sequences(), [], {}
    for path, chain in places:
        name = structures.named(path, chain)
        try:
            sequence, matrix = structures.read_structure(path, chain)
        except AmplifyError as error:
            unusable[name] = str(error)
        else:
            records.append((name, sequence))
            contacts.append(matrix)
        progress(1)
    if unusable and (left_out is None or not records):
        raise AmplifyError(describe_left_out(unusable))
    contents = check(records, strict)
    targets = [Target(*protein, matrix) for protein, matrix in zip(proteins(records), contacts)]
    if left_out is not None:
        left_out |= unusable
    return targets, contents


def describe_left_out(left_out: dict[str, str]) -> str:
    """{name: why} of structures that cannot be used, a line each."""
    if len(left_out) == 1:
        return next(iter(left_out.values()))
    return "\n  ".join((f"{len(left_out):,} structures cannot be used:", *left_out.values()))


def from_records(records: Records, folder: Path | None, progress: Progress, strict: bool = False):
    """The same of proteins; folder: the contact file of each, see targets.py. progress: proteins."""
    contents = check(records, strict, progress)
    if folder is None:
        return [Target(*protein) for protein in proteins(records)], contents
    if not folder.is_dir():
        raise AmplifyError(f"{folder}: there is no such folder; expected the contact files of proteins of {records}")
    found = [
        Target(*protein, read_contacts(folder, protein.name, len(protein.tokens))) for protein in proteins(records)
    ]
    return found, contents
