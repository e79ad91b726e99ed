"""Rows of CSV, TSV and their kin -> cells, by the names of their columns.

Rows without a quote are split at line ends and delimiters. Rows with quoted cells are read by Python's csv, so what is
read is what it reads; a quoted cell that is never closed, or goes on behind its end, is refused.

Between tabs there are two conventions: UniProt, AIRR and most of the field write a quote as a letter, pandas quotes
cells. Unless the user says which (`--quoting`), there a line is a row; a cell that is quoted from its first letter to
its last loses the quotes, any other keeps them. So no quote can swallow the rows behind it; where a quoted cell holds a
line break or a tab, the number of cells is wrong and the row is refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from amplify_ds.prepare.batches import LONGEST_RECORD, Malformed
from amplify_ds.prepare.rows import are_between_cells

Cells = dict[str, list[bytes]]


class Layout(NamedTuple):
    """columns: their names. quoting: "csv", "none" or "cells" (of a cell wholly in quotes they go). offset: bytes
    before the first row; lines: how many lines these are."""

    columns: list[str]
    delimiter: str
    quoting: str
    offset: int
    lines: int

    @property
    def quoted(self) -> bytes | None:
        """The delimiter if quoted cells can hold line ends, for rows.py."""
        return self.delimiter.encode() if self.quoting == "csv" else None


def cells_of(rows: bytes, layout: Layout, places: Sequence[tuple[str, int]], line: int) -> Cells | None:
    count, delimiter = len(layout.columns), layout.delimiter.encode()
    text: bytes | None = rows
    restore: Callable[[bytes], bytes] | None = None
    if b'"' in rows and layout.quoting == "csv":
        text, restore = _hidden(rows, delimiter), _Shown(delimiter)
    elif b'"' in rows and layout.quoting == "cells":
        restore = unquoted
    if text is None:
        found, restore = [row for _, row in rows_of(rows, layout, line)], None
    else:
        found = [text.split(delimiter) for text in _with_plain_ends(text).split(b"\n") if text]
        if any(len(row) != count for row in found):
            list(rows_of(rows, layout, line))  # raises
    if not found:
        return None
    cells = {name: [row[place] for row in found] for name, place in places}
    return {name: list(map(restore, column)) for name, column in cells.items()} if restore else cells


_HIDDEN, _EMPTY = b"\x01\x02\x03", b"\x04"  # in quoted cells: a delimiter, "\n", "\r"; an empty cell


def _hidden(rows: bytes, delimiter: bytes) -> bytes | None:
    """Rows whose quotes stand at the ends of cells only, none doubled, without their quotes: what divides cells is
    hidden where it is part of one, so that they can be split. None for other rows."""
    parts = rows.split(b'"')
    outside = parts[::2]
    begin, end = outside[0] or b"\n", outside[-1] or b"\n"  # the rows begin with a quote, end with one
    simple = len(parts) % 2 and are_between_cells([*outside[1:-1], end], [begin, *outside[1:-1]], delimiter)
    if not simple or any(mark in rows for mark in (*map(_byte, _HIDDEN), _EMPTY)):
        return None
    hide = bytes.maketrans(delimiter + b"\n\r", _HIDDEN)
    parts[1::2] = [part.translate(hide) or _EMPTY for part in parts[1::2]]
    return b"".join(parts)


class _Shown:
    """Gives a cell of `_hidden` back what it had."""

    def __init__(self, delimiter: bytes) -> None:
        self._show = bytes.maketrans(_HIDDEN, delimiter + b"\n\r")

    def __call__(self, cell: bytes) -> bytes:
        return cell.translate(self._show, _EMPTY)


def _byte(number: int) -> bytes:
    return bytes([number])


def rows_of(text: bytes, layout: Layout, line: int) -> Iterator[tuple[int, list[bytes]]]:
    """(number of its first line, cells) of each row, by Python's csv. Raises Malformed for one of another length."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_RECORD + 1))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.quoting == "csv" else csv.QUOTE_NONE
    lines = io.StringIO(text.decode("latin-1"), newline="")
    reader = csv.reader(lines, delimiter=layout.delimiter, strict=True, quoting=quoting)
    begun = line
    try:
        for row in reader:
            if row:
                if layout.columns and len(row) != len(layout.columns):
                    raise Malformed(
                        f"{len(row)} columns, expected {len(layout.columns)}: "
                        f"{layout.delimiter.join(row)[:60]!r}{_quotes(layout, row)}",
                        begun,
                    )
                yield begun, [cell.encode("latin-1") for cell in row]
            begun = line + reader.line_num
    except csv.Error as error:
        raise Malformed(f"a cell in this row is not quoted as in CSV ({error}){no_quotes(layout)}", begun) from error


def _with_plain_ends(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def unquoted(cell: bytes) -> bytes:
    """Without the quotes, where a cell is wholly quoted."""
    inner = cell[1:-1]
    if len(cell) < 2 or not (cell.startswith(b'"') and cell.endswith(b'"')) or b'"' in inner.replace(b'""', b""):
        return cell
    return inner.replace(b'""', b'"')


def _quotes(layout: Layout, row: Sequence[str]) -> str:
    """What may be wrong with a row of another length."""
    if layout.quoting == "cells" and any(cell.startswith('"') for cell in row):
        return '. If cells in "" hold line breaks or tabs, give --quoting csv'
    return no_quotes(layout) if layout.quoting == "csv" and any("\n" in cell or "\r" in cell for cell in row) else ""


def no_quotes(layout: Layout) -> str:
    return ". If quotes are letters in this file, give --quoting none" if layout.quoting == "csv" else ""
