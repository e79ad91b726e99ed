"""Read tables other than delimited text (Parquet, Arrow, hub datasets, JSON lines) as cells by column name.

Which columns hold the sequences and names is chosen in columns.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.parquet as parquet

from amplify_ds.prepare.batches import LONGEST_RECORD, Malformed
from amplify_ds.prepare.formats import UTF8_MARK

if TYPE_CHECKING:
    from datasets import IterableDataset

ROWS = 4096  # read at a time
Cells = dict[str, list[bytes]]


def parquet_columns(path: str) -> tuple[list[str], int]:
    """Return the names of a Parquet file's columns, and its number of row groups."""
    with parquet.ParquetFile(path) as file:
        return file.schema_arrow.names, file.num_row_groups


def read_parquet(path: str, groups: Sequence[int] | None, columns: Sequence[str] | None) -> Iterator[Cells]:
    """Yield the cells of these columns (None: all that hold text) in some row groups (None: in all)."""
    with parquet.ParquetFile(path) as file:
        names = list(_text_columns(file.schema_arrow) if columns is None else columns)
        groups = range(file.num_row_groups) if groups is None else groups
        yield from _cells(file.iter_batches(ROWS, list(groups), names, use_threads=False), names)


def arrow_columns(path: str, arrow_format: str) -> list[str]:
    with pa.OSFile(path) as file, _open_arrow(file, arrow_format) as reader:
        return reader.schema.names


def read_arrow(path: str, arrow_format: str, columns: Sequence[str] | None) -> Iterator[Cells]:
    """Yield the cells of these columns (None: all that hold text) of an Arrow file.

    arrow_format: "arrow stream", in which `datasets` stores tables, or "arrow file", which Feather is too.
    """
    with pa.OSFile(path) as file, _open_arrow(file, arrow_format) as reader:
        names = list(_text_columns(reader.schema) if columns is None else columns)
        if arrow_format == "arrow stream":
            batches: Iterable[pa.RecordBatch] = reader
        else:
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        yield from _cells(batches, names)


def _open_arrow(file: pa.NativeFile, arrow_format: str):
    return (pa.ipc.open_stream if arrow_format == "arrow stream" else pa.ipc.open_file)(file)


def open_dataset(name: str, files: str) -> IterableDataset:
    """Return the data files of a hub repository whose paths begin with `files` (all if empty), opened for streaming."""
    from datasets import load_dataset

    return load_dataset(name, data_files=f"{files}*" if files else None, split="train", streaming=True)


def read_dataset(name: str, files: str, number: int) -> Iterator[pa.Table]:
    """Yield the rows of data file `number` of a hub dataset."""
    whole = open_dataset(name, files)
    part = whole.shard(num_shards=whole.num_shards, index=number).with_format("arrow")
    yield from part.iter(batch_size=ROWS)


def cells_of_tables(tables: Iterable[pa.Table], columns: Sequence[str] | None) -> Iterator[Cells]:
    for table in tables:
        yield from _cells(table.to_batches(), _text_columns(table.schema) if columns is None else columns)


def read_json(stream: BinaryIO, before: bytes, columns: Sequence[str] | None, line: int) -> Iterator[Cells]:
    """Yield the cells of these columns (None: all) of JSON lines, one object per line.

    before: text in front of the stream. line: the number of the first line.
    """
    rows: list[dict] = []
    for text in _json_lines(stream, before):
        if text.strip():
            rows.append(_json_row(text, columns, line))
        line += 1
        if len(rows) == ROWS:
            yield _json_cells(rows, columns)
            rows = []
    if rows:
        yield _json_cells(rows, columns)


def json_columns(stream: BinaryIO) -> tuple[list[str], bytes]:
    """Return the keys of the first object, and the text that was read for it."""
    text = b""
    for number, line in enumerate(_json_lines(stream, b""), 1):
        text += line
        if line.strip():
            return list(_json_row(line, None, number)), text
    return [], text


def _json_lines(stream: BinaryIO, before: bytes) -> Iterator[bytes]:
    """Yield the lines with their line ends; before: whole lines in front of the stream."""
    yield from io.BytesIO(before)
    while text := stream.readline(LONGEST_RECORD):
        if len(text) >= LONGEST_RECORD:
            raise Malformed(f"a line of {LONGEST_RECORD:,} bytes or more, longer than any protein")
        yield text


def _json_row(text: bytes, columns: Sequence[str] | None, line: int) -> dict:
    try:
        row = json.loads(text.removeprefix(UTF8_MARK) if line == 1 else text)
    except ValueError as error:
        raise Malformed(f"not JSON with one object per line: {error}", line) from error
    if not isinstance(row, dict):
        raise Malformed(f"{text[:40].decode(errors='replace')!r} is not a JSON object", line)
    if missing := [name for name in columns or () if name not in row]:
        raise Malformed(f'no value for "{missing[0]}" in this object: {", ".join(row)[:200]}', line)
    return row


def _json_cells(rows: Sequence[dict], columns: Sequence[str] | None) -> Cells:
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    return {name: [_json_cell(row.get(name)) for row in rows] for name in names}


def _json_cell(value: object) -> bytes:
    if value is None:
        return b""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


def _cells(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> Iterator[Cells]:
    for batch in batches:
        batch.validate(full=True)  # a damaged file can hold offsets beyond its end
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            yield {name: _bytes(part.column(name), name) for name in columns if part.schema.names.count(name) == 1}


def _text_columns(schema: pa.Schema) -> list[str]:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return [field.name for field in schema if any(test(field.type) for test in tests)]


def _bytes(column: pa.Array, name: str) -> list[bytes]:
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        try:  # converts numbers and categories to text
            column = column.cast(pa.large_string()).cast(pa.large_binary())
        except pa.ArrowException as error:
            raise Malformed(f'the column "{name}" holds {column.type}, expected text ({error})') from error
    return column.fill_null(b"").to_pylist()
