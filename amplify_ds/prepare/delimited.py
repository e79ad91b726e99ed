"""Read CSV, TSV and similar text: the first row shows the layout, then blocks of whole rows (rows.py) become cells by
column name (cells.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from amplify_ds.prepare.batches import LONGEST_RECORD, Malformed, lines_in
from amplify_ds.prepare.cells import Cells, Layout, cells_of, no_quoting_advice, rows_of, unquoted
from amplify_ds.prepare.formats import UTF8_MARK
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.rows import RowEnds

BLOCK = 2**20
LONGEST_HEADER = 2**20
_METADATA = re.compile(rb'"?\{')  # the first line of OAS's files is a JSON object
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


def read_layout(stream: BinaryIO, tabs: bool, reading: Reading) -> tuple[Layout, bytes]:
    """Return the layout that the first row shows, and the text that was read after it. Raises Malformed.

    tabs: the name of the file says that tabs separate the cells.
    """
    head, layout = b"", None
    while layout is None:
        block = stream.read(2**16)
        head += block
        layout = _layout(head, tabs, reading, ended=not block)
        if layout is None and len(head) > LONGEST_HEADER:
            raise Malformed(f"a first line of more than {LONGEST_HEADER:,} bytes, expected names of columns", 1)
    return layout, head[layout.offset :]


def _layout(head: bytes, tabs: bool, reading: Reading, ended: bool) -> Layout | None:
    """Return the layout, None if the first row does not end in `head`."""
    start = len(UTF8_MARK) if head.startswith(UTF8_MARK) else 0
    end = _row_end(head, start, None, ended)
    if end and reading.header and _METADATA.match(head, start):
        start = end
        end = _row_end(head, start, None, ended)
    if not end:
        return None
    line = head[start:end]
    delimiter = reading.delimiter or ("\t" if tabs or b"\t" in line else ",")
    quoting = {"auto": "cells" if delimiter == "\t" else "csv"}.get(reading.quoting, reading.quoting)
    layout = Layout([], delimiter, quoting, 0, 0)
    end = _row_end(head, start, layout.quoted, ended)
    if not end:
        return None
    row = next(iter(rows_of(head[start:end], layout, lines_in(head[:start]) + 1)), (0, []))[1]
    names = [unquoted(cell) if quoting == "cells" else cell for cell in row]
    if not reading.header:
        return layout._replace(columns=[str(number) for number in range(1, len(names) + 1)], offset=start)
    columns = [name.decode(errors="replace") for name in names]
    return layout._replace(columns=columns, offset=end, lines=lines_in(head[:end]))


def _row_end(head: bytes, start: int, quoted: bytes | None, ended: bool) -> int:
    """Return where the first row after `start` ends, 0 if it does not end in `head`."""
    ends = RowEnds(quoted)
    begin = start
    for end in _LINE_END.finditer(head, start):
        ends.feed(head[begin : end.end()])
        begin = end.end()
        if not ends.inside and head[start:begin].strip():
            return begin
    return len(head) if ended else 0


def read_cells(
    stream: BinaryIO, before: bytes, layout: Layout, columns: Sequence[str] | None, line: int
) -> Iterator[Cells]:
    """Yield the cells of these columns (None: of all), by name, some rows at a time. Raises Malformed.

    before: text in front of the stream. line: the number of the first line.
    """
    ends, carry, block = RowEnds(layout.quoted), b"", before or stream.read(BLOCK)
    indices = [(name, layout.columns.index(name)) for name in (layout.columns if columns is None else columns)]
    while block:
        if end := ends.feed(block):
            rows, carry = carry + block[:end], block[end:]
            if cells := cells_of(rows, layout, indices, line):
                yield cells
            line += lines_in(rows)
        else:
            carry += block
        if len(carry) > LONGEST_RECORD:
            raise Malformed(_too_long(ends), line)
        block = stream.read(BLOCK)
    if ends.inside:
        raise Malformed(f"a cell in this row begins with a quote that is never closed{no_quoting_advice(layout)}", line)
    if carry and (cells := cells_of(carry, layout, indices, line)):
        yield cells


def _too_long(ends: RowEnds) -> str:
    reason = ", from a quote that is not closed" if ends.inside else ""
    return f"a line of more than {LONGEST_RECORD:,} bytes{reason}, longer than any protein"
