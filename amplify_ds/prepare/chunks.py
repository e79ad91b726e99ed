"""A source of sequences, and the chunks in which it can be read.

A source can be read from beginning to end, or in chunks that workers read independently: FASTA is cut at a record every
`CHUNK_BYTES` bytes, Parquet at its row groups, a zip archive at its members, and a dataset of the hub at its data
files. In a table of text a line end may be part of a quoted cell, which only reading from the beginning can tell, so
the cuts are found while the file is hashed (`cutter`). Compressed files and streams are one chunk. The records of all
chunks together depend on the source alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import archives, formats, readers, rows
from amplify_ds.prepare.batches import Batch, quoted
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.streams import Progress, compression

STANDARD_INPUT = "standard input"
_SHOWN = 20  # names of members that are left out


@dataclass(frozen=True)
class Chunk:
    """A part of a source. `read(progress)` yields its batches; bytes: about what it will tell `progress`."""

    name: str
    bytes: int
    read: Callable[[Progress], Iterator[Batch]]


@dataclass(frozen=True)
class Source:
    """One file, stream or dataset. path, bytes: None where it is no file on disk.

    version: tells contents apart: two sources of the same version need not both be read. whole: all of it as one chunk.
    cutter: makes what finds the places to cut a file at, None where it needs none; `chunks` takes those places.
    """

    name: str
    path: Path | None
    bytes: int | None
    version: str
    whole: Chunk
    chunks: Callable[[Sequence[int]], list[Chunk]] = field(repr=False)
    cutter: Callable[[], rows.Cutter] | None = None

    @property
    def passes_once(self) -> bool:
        """Whether what it holds cannot be read again."""
        return self.name == STANDARD_INPUT

    def read(self, progress: Progress = lambda read: None) -> Iterator[Batch]:
        return self.whole.read(progress)


def version_of(path: Path, reading: Reading) -> str:
    """What differs between two contents of a file, or ways to read it."""
    return f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns} {reading}"


def source_of_file(path: Path, reading: Reading, tell: Callable[[str], object]) -> Source:
    place = str(path)
    if not path.is_file():
        raise AmplifyError(f"{path} is a device, expected a file. To read a pipe, give - and redirect it.")
    size = path.stat().st_size
    if not size:
        raise AmplifyError(f"{path} is empty, expected sequences. Was its download interrupted?")
    with readers.refusing(place), open(path, "rb") as file:
        head = file.read(formats.HEAD)
    make = partial(_source_of, path, size, version_of(path, reading), reading)
    match formats.binary_format(head):
        case "parquet":
            source = make(*_parquet(place, size, reading))
        case "arrow file" | "arrow stream" as form:
            source = make(chunk_of(place, size, readers.read_arrow, place, form, reading))
        case "zip":
            source = make(*_zip(place, reading, tell))
        case _:
            if compression(head) or head.startswith(tuple(formats.UTF16_MARKS)) or archives.is_tar(head):
                source = make(chunk_of(place, size, readers.read_stream, place, place, reading))
            else:
                source = make(*_text(place, head, size, reading))
    first = next(source.read(), None)  # what is no input of proteins is refused at once
    if first and first.named and first.ids is None and reading.of_columns:
        tell(f"{path} is FASTA: {', '.join(reading.of_columns)} are for tables, and mean nothing for it")
    return source


def _source_of(
    path: Path,
    size: int,
    version: str,
    reading: Reading,
    whole: Chunk,
    chunks: Callable[[Sequence[int]], list[Chunk]] | None = None,
    cutter: Callable[[], rows.Cutter] | None = None,
) -> Source:
    return Source(path.name, path, size, version, whole, chunks or (lambda cuts: [whole]), cutter)


def _parquet(place: str, size: int, reading: Reading) -> tuple:
    _, groups = readers.parquet_layout(place, reading)

    def chunks(cuts: Sequence[int]) -> list[Chunk]:
        share = size // max(1, groups)
        return [
            chunk_of(
                f"{place}, row group {number}", share, readers.read_parquet, place, range(number, number + 1), reading
            )
            for number in range(groups)
        ]

    return chunk_of(place, size, readers.read_parquet, place, None, reading), chunks


def _zip(place: str, reading: Reading, tell: Callable[[str], object]) -> tuple:
    with readers.refusing(place):
        members, others = archives.zip_members(place)
    if others:
        tell(f"left out of {place}: {quoted(others, _SHOWN)}")
    parts: list[list[archives.Member]] = []
    filled = rows.CHUNK_BYTES
    for member in members:
        if filled >= rows.CHUNK_BYTES:
            parts.append([])
            filled = 0
        parts[-1].append(member)
        filled += member.bytes
    chunks = [
        chunk_of(
            f"{place}, {part[0]}", sum(member.bytes for member in part), readers.read_members, place, part, reading
        )
        for part in parts
    ]
    whole = chunk_of(place, sum(chunk.bytes for chunk in chunks), readers.read_members, place, members, reading)
    return whole, lambda cuts: chunks


def _text(place: str, head: bytes, size: int, reading: Reading) -> tuple:
    """A plain file: FASTA is cut anywhere, a table where a cutter says."""
    whole = chunk_of(place, size, readers.read_stream, place, place, reading, damaged="")
    with readers.refusing(place):
        form = formats.text_format(head, place, reading.of_tables)
    if form == "fasta":
        bounds = [(start, min(start + rows.CHUNK_BYTES, size)) for start in range(0, size, rows.CHUNK_BYTES)]
        return whole, lambda cuts: _sections(place, bounds, readers.read_fasta_section, reading)
    if form == "delimited":
        layout, chosen = readers.layout_of(place, reading)
    else:
        layout, chosen = None, readers.json_choice(place, reading)
    begin = layout.offset if layout else 0

    def chunks(cuts: Sequence[int]) -> list[Chunk]:
        places = [begin, *cuts, size]
        return _sections(place, list(zip(places, places[1:])), readers.read_rows, layout, chosen, reading)

    return whole, chunks, partial(rows.Cutter, layout.quoted if layout else None, begin)


def _sections(place: str, bounds: Sequence[tuple[int, int]], read: Callable, *arguments: object) -> list[Chunk]:
    return [
        chunk_of(f"{place}, byte {start:,}", stop - start, read, place, (start, stop), *arguments)
        for start, stop in bounds
    ]


def chunk_of(name: str, size: int, read: Callable, *arguments: object, **others: object) -> Chunk:
    return Chunk(name, size, _Reader(read, arguments, others))


class _Reader:
    """`read(*arguments, progress)`, for another process too."""

    def __init__(self, read: Callable, arguments: tuple, others: dict) -> None:
        self._read, self._arguments, self._others = read, arguments, others

    def __call__(self, progress: Progress) -> Iterator[Batch]:
        return self._read(*self._arguments, progress, **self._others)
