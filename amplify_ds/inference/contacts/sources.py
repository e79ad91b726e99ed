"""Structures, or sequences with or without contact files -> checked targets, all in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.contacts.targets import Target, read_contacts
from amplify_ds.inference.reading import Contents, check, proteins
from amplify_ds.inference.records import Records, Sequences

Progress = Callable[[int], object]


def from_structures(words: Sequence[str], progress: Progress, strict: bool = False) -> tuple[list[Target], Contents]:
    """Of a folder, files or FILE:CHAIN. progress: structures. Raises AmplifyError, see structures.py."""
    from amplify_ds.inference.contacts import structures

    places = structures.find(words)
    counts = Counter(structures.named(*place) for place in places)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise AmplifyError(
            f"{len(twice):,} structures stand there more than once: {', '.join(twice[:5])}; give each once, and files "
            "of different names"
        )
    records, contacts = Sequences(), []
    for path, chain in places:
        sequence, matrix = structures.read_structure(path, chain)
        records.append((structures.named(path, chain), sequence))
        contacts.append(matrix)
        progress(1)
    contents = check(records, strict)
    return [Target(*protein, matrix) for protein, matrix in zip(proteins(records), contacts)], contents


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
