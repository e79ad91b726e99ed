"""Read targets from structure files, or from sequences with or without contact files, and check them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.extras import require
from amplify_ds.inference.contacts.targets import Target, read_contacts
from amplify_ds.inference.reading import InputStats, check, proteins
from amplify_ds.inference.records import Records, Sequences

Progress = Callable[[int], object]


def from_structures(
    arguments: Sequence[str], progress: Progress, strict: bool = False, left_out: dict[str, str] | None = None
) -> tuple[list[Target], InputStats]:
    """Return the targets of a folder, of files or of FILE:CHAIN, and statistics of their sequences.

    progress: called with the number of structures done. left_out: {name: reason} of each structure that cannot be used
    is added. Raises AmplifyError, listing them, if no structure can be used, or if one cannot and `left_out` is None.
    """
    require("gemmi", "reading structures")
    from amplify_ds.inference.contacts import structures

    files = structures.find(arguments)
    counts = Counter(structures.protein_name(*file) for file in files)
    if duplicates := [name for name, count in counts.items() if count > 1]:
        raise AmplifyError(
            f"{len(duplicates):,} structures appear more than once: {', '.join(duplicates[:5])}; give each structure "
            "once, in files with different names"
        )
    records, contacts, unusable = Sequences(), [], {}
    for path, chain in files:
        name = structures.protein_name(path, chain)
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
    stats = check(records, strict)
    targets = [Target(*protein, matrix) for protein, matrix in zip(proteins(records), contacts)]
    if left_out is not None:
        left_out |= unusable
    return targets, stats


def describe_left_out(left_out: dict[str, str]) -> str:
    """Return a message with the reasons why structures cannot be used, one per line. left_out: {name: reason}."""
    if len(left_out) == 1:
        return next(iter(left_out.values()))
    return "\n  ".join((f"{len(left_out):,} structures cannot be used:", *left_out.values()))


def from_records(records: Records, folder: Path | None, progress: Progress, strict: bool = False):
    """Return the targets of records, and statistics of their sequences.

    folder: the contact files of the proteins (targets.py), or None. progress: called with the number of proteins done.
    """
    stats = check(records, strict, progress)
    if folder is None:
        return [Target(*protein) for protein in proteins(records)], stats
    if not folder.is_dir():
        raise AmplifyError(f"{folder}: there is no such folder; expected contact files of the proteins in {records}")
    targets = [
        Target(*protein, read_contacts(folder, protein.name, len(protein.tokens))) for protein in proteins(records)
    ]
    return targets, stats
