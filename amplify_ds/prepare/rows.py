"""Find where rows of delimited text end, block by block; a line end inside a quoted cell does not end a row.

A cell is quoted if it begins with a quote; two quotes within it stand for one; the next quote ends it. This is RFC 4180
and what Python's csv reads. `RowEnds` remembers between blocks whether a quoted cell is open, so a row can have any
length and a block can end anywhere. `Cutter` uses it to find where a file can be cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterable

CHUNK_BYTES = 2**26  # bytes
_LINE_ENDS = b"\r\n"


class RowEnds:
    """Finds the ends of rows, block by block. inside: whether the text read so far ends within a quoted cell."""

    def __init__(self, delimiter: bytes | None) -> None:
        """delimiter: of text with quoted cells; None if quotes are ordinary characters."""
        self.inside = False
        self._delimiter = delimiter
        self._before = frozenset(_LINE_ENDS + (delimiter or b""))  # bytes after which a quote opens a cell
        self._last = _LINE_ENDS[-1]  # the byte before this block
        self._closing = False  # whether that byte is a quote that ends a cell unless another quote follows

    def feed(self, block: bytes) -> int:
        """Return where the last row that ends in this block ends: the index after its line end, 0 if none ends."""
        if self._delimiter is None:
            return _last_end(block, 0, len(block))
        end = None if self._closing else self._feed_plain(block, self._delimiter)
        if end is None:
            end = self._feed_any(block)
        self._last = block[-1] if block else self._last
        return end

    def _feed_plain(self, block: bytes, delimiter: bytes) -> int | None:
        """Return the same by one split at the quotes; None unless all are at the ends of cells and none is doubled."""
        parts = block.split(b'"')
        quoted = int(self.inside)  # parts[quoted::2] are outside of quoted cells
        outside = parts[quoted::2]
        ends_outside = (len(parts) - quoted) % 2 == 1
        after = outside if quoted else outside[1:]
        before = outside[:-1] if ends_outside else list(outside)
        if before and not quoted and not before[0] and self._last in self._before:
            del before[0]
        if not are_between_cells(after, before, delimiter):
            return None
        self.inside = not ends_outside
        stop = len(block)
        for number in range(len(parts) - 1, -1, -1):
            start = stop - len(parts[number])
            if (number - quoted) % 2 == 0 and (end := _last_end(block, start, stop)):
                return end
            stop = start - 1
        return 0

    def _feed_any(self, block: bytes) -> int:
        """Return the same, read quote by quote."""
        outside, end = 0, 0  # where the current stretch outside of quoted cells begins; the result so far
        quote = block.find(b'"')
        if self._closing:
            self._closing = False
            if block.startswith(b'"'):
                self.inside = True
                quote = block.find(b'"', 1)
        while quote >= 0:
            following = quote + 1
            if not self.inside:
                if (block[quote - 1] if quote else self._last) in self._before:
                    self.inside = True
                    end = _last_end(block, outside, quote) or end
            elif block[following : following + 1] == b'"':
                following += 1
            else:
                self.inside, outside = False, following
                self._closing = following == len(block)
            quote = block.find(b'"', following)
        return end if self.inside else _last_end(block, outside, len(block)) or end


def are_between_cells(after: Iterable[bytes], before: Iterable[bytes], delimiter: bytes) -> bool:
    """Return whether each text after a closing quote begins, and each before an opening quote ends, with a delimiter
    or line end."""
    separators = {delimiter, b"\n", b"\r"}
    return {part[:1] for part in after} <= separators and {part[-1:] for part in before} <= separators


def _last_end(block: bytes, start: int, stop: int) -> int:
    """Return the index after the last line end in block[start:stop], 0 if there is none.

    A "\\r" as the last byte of the block does not count: it may be half of a line end.
    """
    feed, back = block.rfind(b"\n", start, stop), block.rfind(b"\r", start, min(stop, len(block) - 1))
    return max(feed, back) + 1


class Cutter:
    """Finds, block by block, where chunks of about CHUNK_BYTES bytes can begin. offset: the byte of the first row."""

    def __init__(self, delimiter: bytes | None, offset: int) -> None:
        self.cuts: list[int] = []
        self._ends, self._skip = RowEnds(delimiter), offset
        self._position, self._chunk_start = 0, offset

    def feed(self, block: bytes) -> None:
        """Take the next block of the file and append to `cuts` if a chunk can begin in it."""
        skipped = block[: self._skip]
        self._skip -= len(skipped)
        self._position += len(skipped)
        rows = block[len(skipped) :]
        if not rows:
            return
        end = self._ends.feed(rows)
        if end and self._position + end - self._chunk_start >= CHUNK_BYTES:
            self._chunk_start = self._position + end
            self.cuts.append(self._chunk_start)
        self._position += len(rows)
