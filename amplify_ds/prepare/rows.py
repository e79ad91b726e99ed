"""Where rows of delimited text end, whatever the blocks in which it comes: a line end inside a quoted cell ends none.

A cell is quoted if it begins with a quote; two quotes within it are one; the next ends it. That is RFC 4180 and what
Python's csv reads. `RowEnds` carries from block to block whether a quoted cell is open, so that a row can be as long as
it likes and a block end anywhere. `Cutter` finds with it the places at which a file can be cut into pieces.
"""

from __future__ import annotations

PIECE = 2**26  # bytes
_QUOTE, _LINE_ENDS = ord('"'), b"\r\n"


class RowEnds:
    """Follows a text block by block. inside: whether it is within a quoted cell."""

    def __init__(self, delimiter: bytes | None) -> None:
        """delimiter: of text with quoted cells; None where quotes are letters."""
        self.inside = False
        self._before = None if delimiter is None else frozenset(_LINE_ENDS + delimiter)  # a quoted cell
        self._last = _LINE_ENDS[-1]  # the byte before this block
        self._closing = False  # whether that is a quote which ends a cell unless another one follows

    def feed(self, block: bytes) -> int:
        """Return where the last row that ends in this block does: the place after its line end; 0 if none does."""
        outside, end = 0, 0  # since which place it is outside of quoted cells; the result so far
        place = -1 if self._before is None else block.find(b'"')
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
        if not self.inside:
            end = _last_end(block, outside, len(block)) or end
        self._last = block[-1] if block else self._last
        return end


def _last_end(block: bytes, start: int, stop: int) -> int:
    """The place after the last line end in block[start:stop]; 0: none. "\\r" as the last byte may be half of one."""
    feed, back = block.rfind(b"\n", start, stop), block.rfind(b"\r", start, min(stop, len(block) - 1))
    return max(feed, back) + 1


class Cutter:
    """Finds, block by block, where pieces of some PIECE bytes or more can begin; offset: the first byte of the text."""

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
        if end and self._place + end - self._begun >= PIECE:
            self._begun = self._place + end
            self.cuts.append(self._begun)
        self._place += len(rows)
