"""Read a source or a chunk of it (`sources.py`) in batches of records. Errors name file, line and reason."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import pyarrow as pa

from amplify_ds.errors import AmplifyError, explain
from amplify_ds.prepare import archives, formats, tables
from amplify_ds.prepare.alphabet import GAPS, SAMPLE, reject_nucleotides
from amplify_ds.prepare.batches import Batch, Malformed, lines_in
from amplify_ds.prepare.columns import Chosen, choose, records
from amplify_ds.prepare.delimited import Layout, read_cells, read_layout
from amplify_ds.prepare.fasta import read_fasta
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.rows import RowEnds
from amplify_ds.prepare.streams import Progress, buffered, open_section, open_stream

_BROKEN = (OSError, ValueError, EOFError, pa.ArrowException)  # what damaged files raise
_DAMAGED = " The input is compressed or a stream and may be damaged: test it (gzip -t) or download it again."
Table = Mapping[str, Sequence[bytes]]


def read_stream(
    address: str, name: str, reading: Reading, progress: Progress, damaged: str = _DAMAGED
) -> Iterator[Batch]:
    """Yield the batches of a whole input that holds text or a tar archive, compressed or not.

    name: what errors call the input. damaged: what they add.
    """
    with wrap_errors(name, damaged), open_stream(address, progress) as stream:
        if not archives.is_tar(stream.peek(2**9)):
            yield from read_text(stream, address, reading)
            return
        others: list[str] = []
        for member, content in archives.tar_members(stream, others):
            with wrap_errors(f"{name}, {member}"):
                yield from read_text(buffered(content), member, reading)
        if others:
            yield Batch([], b"", noted={f"left out of {name}: {other}": 1 for other in others[:20]})


def read_members(path: str, members: Sequence[str], reading: Reading, progress: Progress) -> Iterator[Batch]:
    """Yield the batches of some members of a zip archive."""
    for member in members:
        with wrap_errors(f"{path}, {member}"), archives.zip_member(path, member) as stream:
            for batch in read_text(buffered(stream), member, reading):
                progress(len(batch.text) // 4)
                yield batch


def read_text(stream: io.BufferedReader, name: str, reading: Reading) -> Iterator[Batch]:
    """Yield the batches of a stream of text from its beginning, in any text format."""
    head = stream.peek(formats.HEAD)[: formats.HEAD]
    if binary := formats.binary_format(head):
        raise Malformed(f"it is {binary} within an archive, a compressed file or a stream; unpack it and give the file")
    text_format = formats.text_format(head, name, reading.is_table)
    if text_format == "fasta":
        yield from _finished(read_fasta(stream), reading, dict)
    elif text_format == "delimited":
        layout, rest = read_layout(stream, formats.suffix(name) == ".tsv", reading)
        sample = _sample_of(rest, layout)
        chosen = choose(layout.columns, reading, sample)
        cells = read_cells(stream, rest, layout, chosen.all, layout.lines + 1)
        yield from _finished(_records(cells, chosen), reading, sample)
    else:
        columns, before = tables.json_columns(stream)
        sample = _first(_json_of, before)
        chosen = choose(columns, reading, sample)
        cells = tables.read_json(stream, before, chosen.all, 1)
        yield from _finished(_records(cells, chosen), reading, sample)


def layout_of(path: str, reading: Reading) -> tuple[Layout, Chosen]:
    """Return the layout of a plain file of delimited text, and the columns to read."""
    with wrap_errors(path), open(path, "rb") as stream:
        layout, rest = read_layout(stream, formats.suffix(path) == ".tsv", reading)
        return layout, choose(layout.columns, reading, _sample_of(rest, layout))


def json_choice(path: str, reading: Reading) -> Chosen:
    with wrap_errors(path), open(path, "rb") as stream:
        columns, before = tables.json_columns(stream)
        return choose(columns, reading, _first(_json_of, before))


def read_fasta_section(path: str, bounds: tuple[int, int], reading: Reading, progress: Progress) -> Iterator[Batch]:
    """Yield the records of a plain FASTA file that begin within the bounds."""
    with wrap_errors(path):
        stream, begin = open_section(path, *bounds, b"\n>", progress)
    with stream, wrap_errors(path, begin=begin):
        yield from _finished(read_fasta(stream), reading)


def read_rows(
    path: str, bounds: tuple[int, int], layout: Layout | None, chosen: Chosen, reading: Reading, progress: Progress
) -> Iterator[Batch]:
    """Yield the rows within the bounds of a plain file, at which rows begin. layout: None for JSON lines."""
    with wrap_errors(path):
        stream, begin = open_section(path, *bounds, b"", progress)
    with stream, wrap_errors(path, begin=begin):
        if layout:
            cells = read_cells(stream, b"", layout, chosen.all, 1)
        else:
            cells = tables.read_json(stream, b"", chosen.all, 1)
        yield from _finished(_records(cells, chosen), reading)


def parquet_layout(path: str, reading: Reading) -> tuple[Chosen, int]:
    """Return the columns of a Parquet file to read, and the number of row groups."""
    with wrap_errors(path):
        columns, groups = tables.parquet_columns(path)
        return choose(columns, reading, _first(tables.read_parquet, path, None, None)), groups


def read_parquet(path: str, groups: range | None, reading: Reading, progress: Progress) -> Iterator[Batch]:
    """Yield the batches of some row groups; None: of all, checked for nucleotides."""
    chosen, _ = parquet_layout(path, reading)
    with wrap_errors(path):
        batches = _records(tables.read_parquet(path, groups, chosen.all), chosen)
        sample = None if groups is not None else _first(tables.read_parquet, path, None, None)
        yield from _with_progress(_finished(batches, reading, sample), progress)


def read_arrow(path: str, arrow_format: str, reading: Reading, progress: Progress) -> Iterator[Batch]:
    with wrap_errors(path):
        sample = _first(tables.read_arrow, path, arrow_format, None)
        chosen = choose(tables.arrow_columns(path, arrow_format), reading, sample)
        batches = _records(tables.read_arrow(path, arrow_format, chosen.all), chosen)
        yield from _with_progress(_finished(batches, reading, sample), progress)


def read_data_files(name: str, files: str, numbers: range, reading: Reading, progress: Progress) -> Iterator[Batch]:
    """Yield the batches of some of the data files of a hub dataset."""
    for number in numbers:
        with wrap_errors(f"{name}:{files}"):
            rows = tables.read_dataset(name, files, number)
            if (first := next(rows, None)) is None:
                continue
            sample = _first(tables.cells_of_tables, [first], None)
            chosen = choose(first.column_names, reading, sample)
            cells = tables.cells_of_tables(_after(first, rows), chosen.all)
            yield from _with_progress(_finished(_records(cells, chosen), reading, sample), progress)


def _first(read: Callable[..., Iterator[tables.Cells]], *arguments: object) -> Callable[[], Table]:
    """Return a function that reads the first cells of a table anew each time it is called."""
    return lambda: next(read(*arguments), {})


def _json_of(lines: bytes) -> Iterator[tables.Cells]:
    return tables.read_json(io.BytesIO(), lines, None, 1)


def _after(first: object, others: Iterable) -> Iterator:
    yield first
    yield from others


def _records(cells: Iterable[tables.Cells], chosen: Chosen) -> Iterator[Batch]:
    return (records(some, chosen) for some in cells)


def _finished(batches: Iterable[Batch], reading: Reading, table: Callable[[], Table] | None = None) -> Iterator[Batch]:
    """Return the batches, without gaps if the reading strips them.

    table: given for an input from its beginning, which is checked for nucleotides; returns its first cells.
    """
    if reading.alignment == "strip":
        batches = (batch._replace(text=batch.text.translate(None, GAPS)) for batch in batches)
    return iter(batches) if table is None or reading.nucleotides else reject_nucleotides(batches, table)


def _sample_of(text: bytes, layout: Layout) -> Callable[[], Table]:
    """Return a function that returns the cells of all columns, of the rows that are complete in `text`."""

    def sample() -> Table:
        rows = text[: RowEnds(layout.quoted).feed(text)] or text
        try:
            cells = next(read_cells(io.BytesIO(), rows, layout, None, 1), {})
        except Malformed:
            return {}
        return {name: list(islice(column, SAMPLE)) for name, column in cells.items()}

    return sample


def _with_progress(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    for batch in batches:
        progress(len(batch.text))
        yield batch


@contextmanager
def wrap_errors(name: str, hint: str = "", begin: int = 0) -> Iterator[None]:
    """Convert what a reader raises in the block to an AmplifyError that names the input and, if there is one, the line.

    hint: added to the message. begin: the byte of the file at which the stream began: lines before it count too.
    """
    try:
        yield
    except Malformed as error:
        line = "" if error.line is None else f", line {error.line + _lines(name, begin):,}"
        raise AmplifyError(f"{name}{line}: {error.message}.{hint}") from error
    except _BROKEN as error:
        text = explain(error)
        if text is None:
            text = f"{name} cannot be read to its end: {error}. Is it still there and complete?{hint}"
        elif name not in text:  # pyarrow requests the memory that a damaged file claims to need
            text = f"{name}: {text} The file may also be damaged.{hint}"
        raise AmplifyError(text) from error


def _lines(path: str, stop: int) -> int:
    """Return the number of lines in the first `stop` bytes of a file."""
    if not stop:
        return 0
    with open(path, "rb") as file:
        return sum(lines_in(file.read(min(2**20, stop - start))) for start in range(0, stop, 2**20))
