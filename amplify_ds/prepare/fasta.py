"""Read FASTA from a stream of bytes, in batches of records.

dnaio parses: blanks around a line, empty lines and lines that begin with # go, the lines of a sequence are joined. Its
input is watched on the way: what no FASTA file of proteins holds (a byte that is not ASCII, a record without an end)
is refused with its line before it is parsed. Whatever is no residue is left to `clean.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple

from dnaio.exceptions import FastaFormatError
from dnaio.readers import FastaReader

RECORDS = 4096  # handed over at a time
LONGEST_RECORD = 2**25  # bytes; the longest known protein has 45,000 residues
_BUFFER = 2**20


class Batch(NamedTuple):
    """Records as they stand in the input: a name for each ("" where there is none), and a sequence in each line."""

    names: list[str]
    text: bytes

    @classmethod
    def of(cls, names: list[str], sequences: Iterable[bytes]) -> Batch:
        """Line ends within a sequence become blanks."""
        sequences = list(sequences)
        text = b"\n".join(sequences)
        if text.count(b"\n") >= max(1, len(sequences)):
            text = b"\n".join(sequence.replace(b"\n", b" ") for sequence in sequences)
        return cls(names, text)


class Malformed(Exception):
    """What is wrong, and in which line of the stream (1 is the first); None where lines mean nothing."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def read_fasta(stream: BinaryIO) -> Iterator[Batch]:
    """Yield the records of `stream`; raise Malformed where it is not FASTA."""
    records = iter(FastaReader(io.BufferedReader(_Watched(stream), _BUFFER)))
    try:
        while batch := list(islice(records, RECORDS)):
            text = "\n".join([record.sequence for record in batch])
            yield Batch([record.name for record in batch], text.encode())
    except FastaFormatError as error:
        found = error.message.rstrip(".")
        raise Malformed(f'not FASTA, which has lines such as ">name" and "MKV…": {found}', error.line + 1) from error


class _Watched(io.RawIOBase):
    """A stream that raises Malformed where it cannot be FASTA of proteins."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._line = 1  # in which the next byte stands
        self._unended = 0  # bytes since the last record that was seen to begin

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        block = self._stream.read(len(buffer))
        if not block.isascii():
            before, line = self._line, next(line for line in block.split(b"\n") if not line.isascii())
            raise Malformed(
                f"{line[:40]!r} holds bytes that are not ASCII, expected plain letters",
                before + block.count(b"\n", 0, block.find(line)),
            )
        begun = block.rfind(b"\n>")
        self._unended = len(block) - begun if begun >= 0 else self._unended + len(block)
        if self._unended > LONGEST_RECORD:
            raise Malformed(f"a record of more than {LONGEST_RECORD:,} bytes, which no protein has", self._line)
        self._line += block.count(b"\n")
        buffer[: len(block)] = block
        return len(block)
