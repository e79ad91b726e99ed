"""Where rows of delimited text end, whatever the blocks in which it comes: a line end inside a quoted cell ends none.

A cell is quoted if it begins with a quote; two quotes within it are one; the next ends it. That is RFC 4180 and what
Python's csv reads. `RowEnds` carries from block to block whether a quoted cell is open, so that a row can be as long as
it likes and a block end anywhere. `Cutter` finds with it the places at which a file can be cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterable

CHUNK_BYTES = 2**26  # bytes
_LINE_ENDS = b"\r\n"


class RowEnds:
    """Follows a text block by block. inside: whether it is within a quoted cell."""

    def __init__(self, delimiter: bytes | None) -> None:
        """delimiter: of text with quoted cells; None where quotes are letters."""
        self.inside = False
        self._delimiter = delimiter
        self._before = frozenset(_LINE_ENDS + (delimiter or b""))  # a quoted cell
        self._last = _LINE_ENDS[-1]  # the byte before this block
        self._closing = False  # whether that is a quote which ends a cell unless another one follows

    def feed(self, block: bytes) -> int:
        """Return where the last row that ends in this block does: the place after its line end; 0 if none does."""
        if self._delimiter is None:
            return _last_end(block, 0, len(block))
        end = None if self._closing else self._feed_plain(block, self._delimiter)
        if end is None:
            end = self._feed_any(block)
        self._last = block[-1] if block else self._last
        return end

    def _feed_plain(self, block: bytes, delimiter: bytes) -> int | None:
        """The same where all quotes stand at the ends of cells and none is doubled, at once; else None."""
        parts = block.split(b'"')
        quoted = int(self.inside)  # parts[quoted::2] are outside of quoted cells
        outside = parts[quoted::2]
        ends_outside = (len(parts) - quoted) % 2 == 1
        behind = outside if quoted else outside[1:]
        ahead = outside[:-1] if ends_outside else list(outside)
        if ahead and not quoted and not ahead[0] and self._last in self._before:
            del ahead[0]
        if not are_between_cells(behind, ahead, delimiter):
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
        """The same, quote by quote."""
        outside, end = 0, 0  # since which place it is outside of quoted cells; the result so far
        place = block.find(b'"')
        if self._closing:
            self._closing = False
            if block.startswith(b'"'):
                self.inside = True
                place = block.find(b'"', 1)
        while place >= 0:
            following = place + 1
            if not self.inside:
                if (block[place - 1] if place else self._last) in self._before:
                    self.inside = True
                    end = _last_end(block, outside, place) or end
            elif block[following : following + 1] == b'"':
                following += 1
            else:
                self.inside, outside = False, following
                self._closing = following == len(block)
            place = block.find(b'"', following)
        return end if self.inside else _last_end(block, outside, len(block)) or end


def are_between_cells(behind: Iterable[bytes], ahead: Iterable[bytes], delimiter: bytes) -> bool:
    """Whether parts of text behind closing quotes begin, and those ahead of opening ones end, as cells are divided."""
    dividers = {delimiter, b"\n", b"\r"}
    return {part[:1] for part in behind} <= dividers and {part[-1:] for part in ahead} <= dividers


def _last_end(block: bytes, start: int, stop: int) -> int:
    """The place after the last line end in block[start:stop]; 0: none. "\\r" as the last byte may be half of one."""
    feed, back = block.rfind(b"\n", start, stop), block.rfind(b"\r", start, min(stop, len(block) - 1))
    return max(feed, back) + 1


class Cutter:
    """Finds, block by block, where chunks of about CHUNK_BYTES bytes can begin. offset: first byte of the text."""

    def __init__(self, delimiter: bytes | None, offset: int) -> None:
        self.cuts: list[int] = []
        self._ends, self._skip, self._place, self._begun = RowEnds(delimiter), offset, 0, offset

    def feed(self, block: bytes) -> None:
        """The next block of the file, from its first byte on."""
        skipped = block[: self._skip]
        self._skip -= len(skipped)
        self._place += len(skipped)
        rows = block[len(skipped) :]
        if not rows:
            return
        end = self._ends.feed(rows)
        if end and self._place + end - self._begun >= CHUNK_BYTES:
            self._begun = self._place + end
            self.cuts.append(self._begun)
        self._place += len(rows)
