"""Proteins or nucleotides? A, C, G, T and N are residues too, so one sequence shows little and many show it surely."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from amplify_ds.prepare.batches import Batch, Malformed, quoted

GAPS = b"-."  # of an alignment
SAMPLE, SAMPLE_BYTES = 1000, 2**22  # records at the beginning of an input that are looked at, and their letters
_SHARE, _FEWEST = 0.95, 20  # of the letters; of proteins' letters a quarter to a third are among A C G T U N
_LETTERS = bytes(range(65, 91)) + bytes(range(97, 123))
_NOT_LETTERS = bytes(set(range(256)) - set(_LETTERS))
_RESIDUES, _NUCLEOTIDES = b"ACDEFGHIKLMNPQRSTVWYX", b"ACGTUN"


def are_nucleotides(sequences: Iterable[bytes]) -> bool:
    """Whether nearly all letters are A C G T U N, each of A, C, G and T or U among them."""
    letters = b"".join(sequences).translate(None, _NOT_LETTERS).upper()
    others = len(letters.translate(None, _NUCLEOTIDES))
    every = all(letter in letters for letter in (b"A", b"C", b"G")) and (b"T" in letters or b"U" in letters)
    return len(letters) >= _FEWEST and every and others <= (1 - _SHARE) * len(letters)


def are_proteins(cells: Sequence[bytes]) -> bool:
    """Whether the cells of a column look like proteins."""
    texts = [b"".join(cell.split()).upper().rstrip(b"*").translate(None, GAPS + b"|") for cell in cells]
    long = [text for text in texts if len(text) >= _FEWEST]
    letters = b"".join(long)
    clean = len(letters.translate(None, _RESIDUES)) <= (1 - _SHARE) * len(letters)
    return len(long) * 2 > sum(map(bool, texts)) and clean and not are_nucleotides(long)


def protein_columns(table: Mapping[str, Sequence[bytes]]) -> str:
    """What a message adds to name the columns of a table that look like proteins."""
    found = [name for name, cells in table.items() if are_proteins(cells)]
    return f"; proteins seem to be in {quoted(found)}" if found else ""


def refusing_nucleotides(
    batches: Iterable[Batch], table: Callable[[], Mapping[str, Sequence[bytes]]]
) -> Iterator[Batch]:
    """The batches; Malformed where the first records are nucleotides. table: some cells of each column there is."""
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
            f"the first {len(sample):,} sequences hold hardly a letter but A C G T U N: nucleotides, expected proteins"
            f"{protein_columns(cells)}. {'Choose a column with --sequence-column' if cells else 'Translate them'}, or "
            "give --allow-nucleotides if these are proteins"
        )
    yield from chain(held, remaining)
