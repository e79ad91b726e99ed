"""Read FASTA from a stream of bytes, in batches of records.

A block of bytes is cut at every line that begins with ">"; what follows the last one waits for the next block. Of each
record the first line is the name, the rest is the sequence with its line ends in it. Lines that begin with # or ; are
comments. Nothing is decoded: whatever is no residue is left to `clean.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 2**20
LONGEST_RECORD = 2**25  # bytes; the longest known protein has 45,000 residues
_PREAMBLE = re.compile(rb"(?:[ \t\r]*\n|[#;][^\n]*(?:\n|\Z)|[ \t\r]+\Z)*")
_COMMENT = re.compile(rb"\n[#;][^\n]*")


class Batch(NamedTuple):
    """Records as they stand in the input: names (b"" where there are none) and sequences, line ends included."""

    names: tuple[bytes, ...] | list[bytes]
    sequences: tuple[bytes, ...] | list[bytes]


class Malformed(Exception):
    """What is wrong, and in which line of the stream (1 is the first); None where lines mean nothing."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def read_fasta(stream: BinaryIO) -> Iterator[Batch]:
    """Yield the records of `stream`; raise Malformed where it is not FASTA."""
    line, rest, begun = 1, b"", False
    while True:
        block = stream.read(BLOCK)
        data = rest + block
        if not begun:
            preamble = _PREAMBLE.match(data).end()
            line, data = line + data.count(b"\n", 0, preamble), data[preamble:]
            begun = data.startswith(b">")
            if data and not begun and (data.find(b"\n") >= 0 or not block or len(data) > LONGEST_RECORD):
                if not data.isascii():
                    _check_ascii(data, line)
                found = data[:40].split(b"\n")[0].decode()
                raise Malformed(f'{found!r} is not FASTA: expected lines such as ">name" and "MKV…"', line)
        end = data.rfind(b"\n>") if block else len(data)
        if begun and end > 0:
            _check_ascii(data[:end], line)
            yield _records(data[1:end])
            line += data.count(b"\n", 0, end + 1)
            rest = data[end + 1 :]
        else:
            rest = data
        if not block:
            return
        if len(rest) > LONGEST_RECORD:
            raise Malformed(f"a record of more than {LONGEST_RECORD:,} bytes, which no protein has", line)


def _records(text: bytes) -> Batch:
    if b"\n#" in text or b"\n;" in text:
        text = _COMMENT.sub(b"", text)
    names, _, sequences = zip(*[record.partition(b"\n") for record in text.split(b"\n>")])
    return Batch(names, sequences)


def _check_ascii(text: bytes, line: int) -> None:
    if not text.isascii():
        for number, content in enumerate(text.split(b"\n"), line):
            if not content.isascii():
                raise Malformed(f"{content[:40]!r} holds bytes that are not ASCII, expected plain letters", number)
