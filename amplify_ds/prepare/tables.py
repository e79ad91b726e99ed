"""Read tables that are no delimited text: Parquet, Arrow, a dataset of the hub, JSON lines. Cells by column name.

The sequences and names are chosen among the columns (columns.py), or the table is refused with the columns it has.
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

ROWS = 4096  # handed over at a time
Cells = dict[str, list[bytes]]


def parquet_columns(path: str) -> tuple[list[str], int]:
    """The names of a Parquet file's columns, and how many row groups there are."""
    with parquet.ParquetFile(path) as file:
        return file.schema_arrow.names, file.num_row_groups


def read_parquet(path: str, groups: Sequence[int] | None, wanted: Sequence[str] | None) -> Iterator[Cells]:
    """Yield the wanted columns (None: those that hold text) of some row groups, or all."""
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        columns = [field.name for field in schema if _is_text(field.type)] if wanted is None else list(wanted)
        groups = range(file.num_row_groups) if groups is None else groups
        yield from _cells(file.iter_batches(ROWS, list(groups), columns, use_threads=False), columns)


def arrow_columns(path: str, form: str) -> list[str]:
    with pa.OSFile(path) as file, _open_arrow(file, form) as reader:
        return reader.schema.names


def read_arrow(path: str, form: str, wanted: Sequence[str] | None) -> Iterator[Cells]:
    """Yield the columns of an Arrow file; form: "arrow stream", in which `datasets` keeps its tables, or "arrow file",
    which is Feather, too."""
    with pa.OSFile(path) as file, _open_arrow(file, form) as reader:
        schema = reader.schema
        columns = [field.name for field in schema if _is_text(field.type)] if wanted is None else list(wanted)
        if form == "arrow stream":
            batches: Iterable[pa.RecordBatch] = reader
        else:
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        yield from _cells(batches, columns)


def _open_arrow(file: pa.NativeFile, form: str):
    return (pa.ipc.open_stream if form == "arrow stream" else pa.ipc.open_file)(file)


def open_dataset(name: str, files: str) -> IterableDataset:
    """Open the data files of a hub repository whose paths begin with `files` (all, if empty) for streaming."""
    from datasets import load_dataset

    return load_dataset(name, data_files=f"{files}*" if files else None, split="train", streaming=True)


def read_dataset(name: str, files: str, number: int) -> Iterator[pa.Table]:
    """Yield the rows of one of the data files of a dataset."""
    whole = open_dataset(name, files)
    part = whole.shard(num_shards=whole.num_shards, index=number).with_format("arrow")
    yield from part.iter(batch_size=ROWS)


def cells_of_tables(tables: Iterable[pa.Table], wanted: Sequence[str] | None) -> Iterator[Cells]:
    for table in tables:
        columns = [field.name for field in table.schema if _is_text(field.type)] if wanted is None else wanted
        yield from _cells(table.to_batches(), columns)


def read_json(stream: BinaryIO, before: bytes, wanted: Sequence[str] | None, line: int) -> Iterator[Cells]:
    """Yield the columns of JSON lines, an object per line; before: text in front of the stream; line: its number."""
    rows: list[dict] = []
    for text in _json_lines(stream, before):
        if text.strip():
            rows.append(_json_row(text, wanted, line))
        line += 1
        if len(rows) == ROWS:
            yield _json_cells(rows, wanted)
            rows = []
    if rows:
        yield _json_cells(rows, wanted)


def json_columns(stream: BinaryIO) -> tuple[list[str], bytes]:
    """The keys of the first object, and the text that was read for it."""
    read = b""
    for number, text in enumerate(_json_lines(stream, b""), 1):
        read += text
        if text.strip():
            return list(_json_row(text, None, number)), read
    return [], read


def _json_lines(stream: BinaryIO, before: bytes) -> Iterator[bytes]:
    """The lines, their ends included; before: whole lines."""
    yield from io.BytesIO(before)
    while text := stream.readline(LONGEST_RECORD):
        if len(text) >= LONGEST_RECORD:
            raise Malformed(f"a line of {LONGEST_RECORD:,} bytes or more, which no protein has")
        yield text


def _json_row(text: bytes, wanted: Sequence[str] | None, line: int) -> dict:
    try:
        row = json.loads(text.removeprefix(UTF8_MARK) if line == 1 else text)
    except ValueError as error:
        raise Malformed(f"not JSON, an object per line: {error}", line) from error
    if not isinstance(row, dict):
        raise Malformed(f"{text[:40].decode(errors='replace')!r} is no JSON object with names and values", line)
    if lacking := [name for name in wanted or () if name not in row]:
        raise Malformed(f'no value for "{lacking[0]}" in this object: {", ".join(row)[:200]}', line)
    return row


def _json_cells(rows: Sequence[dict], wanted: Sequence[str] | None) -> Cells:
    columns = list(dict.fromkeys(name for row in rows for name in row)) if wanted is None else wanted
    return {name: [_json_cell(row.get(name)) for row in rows] for name in columns}


def _json_cell(value: object) -> bytes:
    if value is None:
        return b""
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="replace")


def _cells(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> Iterator[Cells]:
    for batch in batches:
        batch.validate(full=True)  # a damaged file can hold offsets that lead outside of it
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            yield {name: _bytes(part.column(name), name) for name in columns if part.schema.names.count(name) == 1}


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _bytes(column: pa.Array, name: str) -> list[bytes]:
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        try:  # numbers and categories too, as text
            column = column.cast(pa.large_string()).cast(pa.large_binary())
        except pa.ArrowException as error:
            raise Malformed(f'the column "{name}" holds {column.type}, expected text ({error})') from error
    return column.fill_null(b"").to_pylist()
