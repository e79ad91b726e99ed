"""Read tables in batches of records: CSV or TSV from a stream of bytes, Parquet, Arrow, a dataset of the hub.

One column holds the sequences; another, if the table has it, the names, from which cleaning may read what UniProt says
of an entry. A table without the first is refused with the names of the columns it has. Arrow parses; a malformed line
is found once more by Python's own csv, which knows its number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from amplify_ds.prepare.fasta import Batch, Malformed

ROWS = 4096  # records handed over at a time
_BLOCK = 2**22
_LONGEST_HEADER = 2**16


class Columns(NamedTuple):
    """The names of the columns to read."""

    sequence: str = "sequence"
    name: str = "name"

    def present(self, found: Iterable[str]) -> list[str]:
        """Return those of the columns that are among `found`; Malformed without the sequences."""
        found = list(found)
        if self.sequence not in found:
            raise Malformed(
                f'no column "{self.sequence}" among its columns: {", ".join(found)}. '
                "Name the column of the sequences with --sequence-column"
            )
        return [self.sequence, *([self.name] if self.name in found else [])]


class Header(NamedTuple):
    """The first line of a CSV file: its column names and what stands between them."""

    names: list[str]
    delimiter: str


def read_header(stream: BinaryIO) -> Header:
    """Read the first line of a CSV or TSV file."""
    line = stream.readline(_LONGEST_HEADER).decode("utf-8-sig", errors="replace")
    delimiter = "\t" if "\t" in line else ","
    try:
        return Header(next(csv.reader([line], delimiter=delimiter), []), delimiter)
    except csv.Error as error:
        raise Malformed(f"{line[:60]!r} is no line of column names ({error})", 1) from error


def read_csv(stream: BinaryIO, header: Header | None, columns: Columns) -> Iterator[Batch]:
    """Yield the records of a CSV stream; `header`: of the file, where the stream begins after its first line."""
    first_line = 1 if header is None else 0
    header = header or read_header(stream)
    present = columns.present(header.names)
    follow = _Rewindable(stream)
    if not follow.peek():
        return
    try:
        reader = arrow_csv.open_csv(
            follow,
            read_options=arrow_csv.ReadOptions(column_names=header.names, use_threads=False, block_size=_BLOCK),
            parse_options=arrow_csv.ParseOptions(delimiter=header.delimiter),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=present, column_types={name: pa.binary() for name in present}, strings_can_be_null=False
            ),
        )
        for batch in reader:
            yield from _batches([batch], columns)
    except pa.ArrowInvalid as error:
        raise _locate(follow, header, first_line, error) from error


def read_parquet(path: str, groups: range, columns: Columns) -> Iterator[Batch]:
    """Yield the records of some row groups of a Parquet file."""
    with parquet.ParquetFile(path) as file:
        present = columns.present(file.schema_arrow.names)
        yield from _batches(file.iter_batches(ROWS, list(groups), present, use_threads=False), columns)


def read_arrow(path: str, columns: Columns) -> Iterator[Batch]:
    """Yield the records of an Arrow stream file, the form in which `datasets` keeps its tables."""
    with pa.OSFile(path) as file, pa.ipc.open_stream(file) as reader:
        columns.present(reader.schema.names)
        yield from _batches(reader, columns)


def open_dataset(name: str, files: str) -> object:
    """Open the data files of a hub repository whose paths begin with `files` (all, if empty) for streaming."""
    from datasets import load_dataset

    return load_dataset(name, data_files=f"{files}*" if files else None, split="train", streaming=True)


def read_dataset(name: str, files: str, number: int, columns: Columns) -> Iterator[Batch]:
    """Yield the records of one of the data files of a dataset."""
    whole = open_dataset(name, files)
    part = whole.shard(num_shards=whole.num_shards, index=number).with_format("arrow")
    for table in part.iter(batch_size=ROWS):
        columns.present(table.column_names)
        yield from _batches(table.to_batches(), columns)


def _batches(tables: Iterable[pa.RecordBatch], columns: Columns) -> Iterator[Batch]:
    for table in tables:
        table.validate(full=True)  # a damaged file can hold offsets that lead outside of it
        for start in range(0, table.num_rows, ROWS):
            part = table.slice(start, ROWS)
            sequences = _bytes(part, columns.sequence)
            names = [""] * len(sequences)
            if columns.name in part.schema.names:
                names = [name.decode(errors="replace") for name in _bytes(part, columns.name)]
            yield Batch.of(names, sequences)


def _bytes(table: pa.RecordBatch, name: str) -> list[bytes]:
    column = table.column(name)
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.large_string()).cast(pa.large_binary())  # numbers and categories too, as text
    return column.fill_null(b"").to_pylist()


class _Rewindable(io.RawIOBase):
    """A stream that keeps the last bytes it gave, so that a malformed line among them can be looked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._next = stream, b""
        self.recent, self.lines_before = b"", 0

    def readable(self) -> bool:
        return True

    def peek(self) -> bytes:
        self._next = self._next or self._stream.read(1)
        return self._next

    def readinto(self, buffer: bytearray | memoryview) -> int:
        data = self._next + self._stream.read(len(buffer) - len(self._next))
        self._next = b""
        if data:
            keep = self.recent + data
            cut = keep.rfind(b"\n", 0, max(0, len(keep) - 2 * _BLOCK)) + 1
            self.lines_before += keep.count(b"\n", 0, cut)
            self.recent = keep[cut:]
        buffer[: len(data)] = data
        return len(data)


def _locate(stream: _Rewindable, header: Header, first_line: int, error: Exception) -> Malformed:
    """Find the line that Arrow could not parse."""
    before = first_line + stream.lines_before
    if "straddling" in str(error):
        return Malformed(f"a line of more than {_BLOCK:,} bytes", before + 1)
    text = stream.recent.decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(text, before + 1):
        cells = next(csv.reader([line], delimiter=header.delimiter), [])
        if line and len(cells) != len(header.names):
            return Malformed(f"{len(cells)} columns, expected {len(header.names)}: {line[:60]!r}", number)
    return Malformed(str(error))
