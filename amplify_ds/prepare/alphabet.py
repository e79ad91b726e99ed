"""Tell proteins from nucleotides. A, C, G, T and N are residues too, so it takes many sequences to be sure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from amplify_ds.prepare.batches import Batch, Malformed, quoted

GAPS = b"-."  # of an alignment
SAMPLE, SAMPLE_BYTES = 1000, 2**22  # how many records, and letters, are checked at the start of an input
_MIN_SHARE, _MIN_LETTERS = 0.95, 20  # of letters among A C G T U N; in proteins a quarter to a third are
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123))
_NOT_LETTERS = bytes(set(range(256)) - set(_LETTERS))
_RESIDUES, _NUCLEOTIDES = b"ACDEFGHIKLMNPQRSTVWYX", b"ACGTUN"


def are_nucleotides(sequences: Iterable[bytes]) -> bool:
    """Return whether nearly all letters are A C G T U N, with A, C, G, and T or U all present."""
    letters = b"".join(sequences).translate(None, _NOT_LETTERS).upper()
    others = len(letters.translate(None, _NUCLEOTIDES))
    all_present = all(letter in letters for letter in (b"A", b"C", b"G")) and (b"T" in letters or b"U" in letters)
    return len(letters) >= _MIN_LETTERS and all_present and others <= (1 - _MIN_SHARE) * len(letters)


def are_proteins(cells: Sequence[bytes]) -> bool:
    """Return whether the cells of a column look like proteins."""
    texts = [b"".join(cell.split()).upper().rstrip(b"*").translate(None, GAPS + b"|") for cell in cells]
    long = [text for text in texts if len(text) >= _MIN_LETTERS]
    letters = b"".join(long)
    clean = len(letters.translate(None, _RESIDUES)) <= (1 - _MIN_SHARE) * len(letters)
    return len(long) * 2 > sum(map(bool, texts)) and clean and not are_nucleotides(long)


def protein_columns(table: Mapping[str, Sequence[bytes]]) -> str:
    """Return the end of a message that names the columns which look like proteins, "" if there are none."""
    columns = [name for name, cells in table.items() if are_proteins(cells)]
    return f"; proteins seem to be in {quoted(columns)}" if columns else ""


def reject_nucleotides(batches: Iterable[Batch], table: Callable[[], Mapping[str, Sequence[bytes]]]) -> Iterator[Batch]:
    """Yield the batches; raise Malformed if the first records are nucleotides. table: returns cells of each column."""
    remaining, size = iter(batches), 0
    held: list[Batch] = []
    sample: list[bytes] = []
    for batch in remaining:
        held.append(batch)
        sample += batch.sequences[: SAMPLE - len(sample)]
        size += len(batch.text)
        if len(sample) >= SAMPLE or size >= SAMPLE_BYTES:
            break
    if are_nucleotides(sample):
        cells = table()
        raise Malformed(
            f"the first {len(sample):,} sequences are almost all A C G T U N: nucleotides, expected proteins"
            f"{protein_columns(cells)}. {'Choose a column with --sequence-column' if cells else 'Translate them'}, or "
            "give --allow-nucleotides if these are proteins"
        )
    yield from chain(held, remaining)
