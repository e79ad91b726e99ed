"""Sources of sequences, and the chunks in which workers read them.

A source can be read from beginning to end, or in chunks that workers read independently: FASTA is cut at a record every
`CHUNK_BYTES` bytes, Parquet at its row groups, a zip archive at its members, and a hub dataset at its data files. In a
text table a line end may be part of a quoted cell, which shows only when the file is read from the beginning, so the
cuts are found while it is hashed (`cutter`). Compressed files and streams are one chunk. However a source is cut, its
chunks together hold the same records.
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
_MAX_NAMES = 20  # of members that are left out, in a message


@dataclass(frozen=True)
class Chunk:
    """A part of a source. `read(progress)` yields its batches; bytes: approximately what it reports to `progress`."""

    name: str
    bytes: int
    read: Callable[[Progress], Iterator[Batch]]


@dataclass(frozen=True)
class Source:
    """One file, stream or dataset. path, bytes: None unless it is a file on disk.

    version: identifies the contents; sources with the same version are the same. whole: the source as one chunk.
    cutter: makes a Cutter that finds where the file can be cut, None if it needs none; `chunks` takes these cuts.
    """

    name: str
    path: Path | None
    bytes: int | None
    version: str
    whole: Chunk
    chunks: Callable[[Sequence[int]], list[Chunk]] = field(repr=False)
    cutter: Callable[[], rows.Cutter] | None = None

    @property
    def read_once_only(self) -> bool:
        """Whether the source cannot be read again."""
        return self.name == STANDARD_INPUT

    def read(self, progress: Progress = lambda read: None) -> Iterator[Batch]:
        return self.whole.read(progress)


def version_of(path: Path, reading: Reading) -> str:
    """Return a text that changes whenever the file changes, or the way to read it."""
    return f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns} {reading}"


def source_of_file(path: Path, reading: Reading, notify: Callable[[str], object]) -> Source:
    """Return the source that a file is; AmplifyError if it holds no proteins. notify: is called with notes."""
    name = str(path)
    if not path.is_file():
        raise AmplifyError(f"{path} is not a regular file. To read a pipe, give - and redirect it to standard input.")
    size = path.stat().st_size
    if not size:
        raise AmplifyError(f"{path} is empty, expected sequences. Was its download interrupted?")
    with readers.wrap_errors(name), open(path, "rb") as file:
        head = file.read(formats.HEAD)
    make = partial(_source_of, path, size, version_of(path, reading), reading)
    match formats.binary_format(head):
        case "parquet":
            source = make(*_parquet(name, size, reading))
        case "arrow file" | "arrow stream" as arrow_format:
            source = make(chunk_of(name, size, readers.read_arrow, name, arrow_format, reading))
        case "zip":
            source = make(*_zip(name, reading, notify))
        case _:
            if compression(head) or head.startswith(tuple(formats.UTF16_MARKS)) or archives.is_tar(head):
                source = make(chunk_of(name, size, readers.read_stream, name, name, reading))
            else:
                source = make(*_text(name, head, size, reading))
    first = next(source.read(), None)  # an input without proteins fails now
    if first and first.named and first.ids is None and reading.table_options:
        notify(f"{path} is FASTA, so options for tables have no effect: {', '.join(reading.table_options)}")
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


def _parquet(path: str, size: int, reading: Reading) -> tuple:
    _, groups = readers.parquet_layout(path, reading)

    def chunks(cuts: Sequence[int]) -> list[Chunk]:
        share = size // max(1, groups)
        return [
            chunk_of(
                f"{path}, row group {number}", share, readers.read_parquet, path, range(number, number + 1), reading
            )
            for number in range(groups)
        ]

    return chunk_of(path, size, readers.read_parquet, path, None, reading), chunks


def _zip(path: str, reading: Reading, notify: Callable[[str], object]) -> tuple:
    with readers.wrap_errors(path):
        members, others = archives.zip_members(path)
    if others:
        notify(f"left out of {path}: {quoted(others, _MAX_NAMES)}")
    parts: list[list[archives.Member]] = []
    filled = rows.CHUNK_BYTES
    for member in members:
        if filled >= rows.CHUNK_BYTES:
            parts.append([])
            filled = 0
        parts[-1].append(member)
        filled += member.bytes
    chunks = [
        chunk_of(f"{path}, {part[0]}", sum(member.bytes for member in part), readers.read_members, path, part, reading)
        for part in parts
    ]
    whole = chunk_of(path, sum(chunk.bytes for chunk in chunks), readers.read_members, path, members, reading)
    return whole, lambda cuts: chunks


def _text(path: str, head: bytes, size: int, reading: Reading) -> tuple:
    """Return (whole, chunks, cutter) of a plain file: FASTA can be cut anywhere, a table where its cutter says."""
    whole = chunk_of(path, size, readers.read_stream, path, path, reading, damaged="")
    with readers.wrap_errors(path):
        text_format = formats.text_format(head, path, reading.is_table)
    if text_format == "fasta":
        bounds = [(start, min(start + rows.CHUNK_BYTES, size)) for start in range(0, size, rows.CHUNK_BYTES)]
        return whole, lambda cuts: _sections(path, bounds, readers.read_fasta_section, reading)
    if text_format == "delimited":
        layout, chosen = readers.layout_of(path, reading)
    else:
        layout, chosen = None, readers.json_choice(path, reading)
    begin = layout.offset if layout else 0

    def chunks(cuts: Sequence[int]) -> list[Chunk]:
        bounds = [begin, *cuts, size]
        return _sections(path, list(zip(bounds, bounds[1:])), readers.read_rows, layout, chosen, reading)

    return whole, chunks, partial(rows.Cutter, layout.quoted if layout else None, begin)


def _sections(path: str, bounds: Sequence[tuple[int, int]], read: Callable, *arguments: object) -> list[Chunk]:
    return [
        chunk_of(f"{path}, byte {start:,}", stop - start, read, path, (start, stop), *arguments)
        for start, stop in bounds
    ]


def chunk_of(name: str, size: int, read: Callable, *arguments: object, **keywords: object) -> Chunk:
    return Chunk(name, size, _Reader(read, arguments, keywords))


class _Reader:
    """Calls `read(*arguments, progress, **keywords)`; can be sent to another process."""

    def __init__(self, read: Callable, arguments: tuple, keywords: dict) -> None:
        self._read, self._arguments, self._keywords = read, arguments, keywords

    def __call__(self, progress: Progress) -> Iterator[Batch]:
        return self._read(*self._arguments, progress, **self._keywords)
