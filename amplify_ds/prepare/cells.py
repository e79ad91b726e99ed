"""Convert rows of CSV, TSV and similar text to cells by column name.

Rows without a quote are split at line ends and delimiters. Rows with quoted cells are read as Python's csv module reads
them; a quoted cell that is never closed, or continues after its closing quote, is an error.

Tab-separated files follow two conventions: UniProt, AIRR and most other sources write a quote as an ordinary character,
pandas quotes cells. Unless `--quoting` says which, each line is a row; a cell that is quoted from its first character
to its last loses the quotes, any other keeps them. So no quote can swallow the rows after it; if a quoted cell holds a
line break or a tab, the number of cells is wrong and the row is an error.
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
    """How a table is written. columns: their names. quoting: "csv", "none" or "cells" (a cell that is wholly in quotes
    loses them). offset, lines: the bytes and lines before the first row."""

    columns: list[str]
    delimiter: str
    quoting: str
    offset: int
    lines: int

    @property
    def quoted(self) -> bytes | None:
        """The delimiter if quoted cells can hold line ends, else None, for rows.py."""
        return self.delimiter.encode() if self.quoting == "csv" else None


def cells_of(rows: bytes, layout: Layout, indices: Sequence[tuple[str, int]], line: int) -> Cells | None:
    """Return the cells of some columns, None if there are no rows. Raises Malformed.

    indices: (name, index) of each column. line: the number of the first line.
    """
    count, delimiter = len(layout.columns), layout.delimiter.encode()
    text: bytes | None = rows
    restore: Callable[[bytes], bytes] | None = None
    if b'"' in rows and layout.quoting == "csv":
        text, restore = _without_quotes(rows, delimiter), _Restore(delimiter)
    elif b'"' in rows and layout.quoting == "cells":
        restore = unquoted
    if text is None:
        table, restore = [row for _, row in rows_of(rows, layout, line)], None
    else:
        table = [text.split(delimiter) for text in _with_plain_ends(text).split(b"\n") if text]
        if any(len(row) != count for row in table):
            list(rows_of(rows, layout, line))  # raises
    if not table:
        return None
    cells = {name: [row[index] for row in table] for name, index in indices}
    return {name: list(map(restore, column)) for name, column in cells.items()} if restore else cells


_SUBSTITUTES, _EMPTY = b"\x01\x02\x03", b"\x04"  # in quoted cells: for a delimiter, "\n", "\r"; for an empty cell


def _without_quotes(rows: bytes, delimiter: bytes) -> bytes | None:
    """Return the rows without quotes, ready to be split: delimiters and line ends inside cells are substituted.

    None if a quote is anywhere but at the ends of a cell, or doubled.
    """
    parts = rows.split(b'"')
    outside = parts[::2]
    begin, end = outside[0] or b"\n", outside[-1] or b"\n"  # the rows begin with a quote, end with one
    simple = len(parts) % 2 and are_between_cells([*outside[1:-1], end], [begin, *outside[1:-1]], delimiter)
    if not simple or any(byte in rows for byte in (*map(_byte, _SUBSTITUTES), _EMPTY)):
        return None
    substitute = bytes.maketrans(delimiter + b"\n\r", _SUBSTITUTES)
    parts[1::2] = [part.translate(substitute) or _EMPTY for part in parts[1::2]]
    return b"".join(parts)


class _Restore:
    """Undoes the substitutions of `_without_quotes` in a cell."""

    def __init__(self, delimiter: bytes) -> None:
        self._table = bytes.maketrans(_SUBSTITUTES, delimiter + b"\n\r")

    def __call__(self, cell: bytes) -> bytes:
        return cell.translate(self._table, _EMPTY)


def _byte(number: int) -> bytes:
    return bytes([number])


def rows_of(text: bytes, layout: Layout, line: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of its first line, cells) of each row, read by Python's csv.

    Raises Malformed for a row with a different number of cells.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_RECORD + 1))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.quoting == "csv" else csv.QUOTE_NONE
    lines = io.StringIO(text.decode("latin-1"), newline="")
    reader = csv.reader(lines, delimiter=layout.delimiter, strict=True, quoting=quoting)
    first_line = line
    try:
        for row in reader:
            if row:
                if layout.columns and len(row) != len(layout.columns):
                    raise Malformed(
                        f"{len(row)} columns, expected {len(layout.columns)}: "
                        f"{layout.delimiter.join(row)[:60]!r}{_quoting_advice(layout, row)}",
                        first_line,
                    )
                yield first_line, [cell.encode("latin-1") for cell in row]
            first_line = line + reader.line_num
    except csv.Error as error:
        raise Malformed(
            f"a cell in this row is not quoted as in CSV ({error}){no_quoting_advice(layout)}", first_line
        ) from error


def _with_plain_ends(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def unquoted(cell: bytes) -> bytes:
    """Return the cell without its quotes, if it is wholly quoted."""
    inner = cell[1:-1]
    if len(cell) < 2 or not (cell.startswith(b'"') and cell.endswith(b'"')) or b'"' in inner.replace(b'""', b""):
        return cell
    return inner.replace(b'""', b'"')


def _quoting_advice(layout: Layout, row: Sequence[str]) -> str:
    """Return the end of a message about a row with a wrong number of cells: the option that may be missing, or ""."""
    if layout.quoting == "cells" and any(cell.startswith('"') for cell in row):
        return '. If cells in "" hold line breaks or tabs, give --quoting csv'
    has_line_end = any("\n" in cell or "\r" in cell for cell in row)
    return no_quoting_advice(layout) if layout.quoting == "csv" and has_line_end else ""


def no_quoting_advice(layout: Layout) -> str:
    return ". If quotes are ordinary characters in this file, give --quoting none" if layout.quoting == "csv" else ""
