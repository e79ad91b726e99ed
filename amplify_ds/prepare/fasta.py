"""Read FASTA from a stream of bytes, in batches of records.

A block that ends where a record ends is cut at every line end that ">" follows: header, line end, lines of a sequence.
That is right and fast where a block holds nothing but headers and residues. In any other block the lines are looked at
one by one: blanks around a line and empty lines go, and so do comments (lines that begin with # or ;). Both ways give
the same records.

Files that were joined without a line end between them have a record that begins within a line (`…DWE>b`): after
residues a ">" and a name begin a record, which is counted; any other ">" in a sequence is refused, but for the special
tokens (`<mask>`). Sequences are ASCII; headers are UTF-8, or else Latin-1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from amplify_ds.prepare import formats
from amplify_ds.prepare.batches import LONGEST_RECORD, Batch, Malformed, decoded, without_others
from amplify_ds.vocab import SPECIAL

BLOCK = 2**20
BEGUN_IN_A_LINE = "records begun within a line"
_ODD = (b" ", b"\t", b"\x0b", b"\x0c", b"#", b";", b">")  # in a sequence: look at the lines one by one
_COMMENTS = (b"#", b";")
_TOKEN = "|".join(SPECIAL).encode()
_WITHIN = re.compile(rb"((?:[A-Za-z*|.\- \t]|" + _TOKEN + rb")+)>(.*\S.*)")  # residues, then a record
_STRAY = re.compile(b"".join(b"(?<!%b)" % token[:-1].encode() for token in SPECIAL) + b">")


def read_fasta(stream: BinaryIO) -> Iterator[Batch]:
    """Yield the records of `stream`; raise Malformed where it is not FASTA of proteins."""
    line, carry = 1, b""
    before = stream.read(len(formats.UTF8_MARK)).removeprefix(formats.UTF8_MARK)
    while True:
        read, before = _with_plain_ends(stream, before), b""
        text = carry + read
        cut = text.rfind(b"\n>", max(0, len(carry) - 1)) + 1 if read else len(text)
        block, carry = text[:cut], text[cut:]
        if block:
            yield _parse(block, line)
            line += block.count(b"\n")
        if not read:
            return
        if len(carry) > LONGEST_RECORD:
            line += carry.count(b"\n")
            raise Malformed(f"a record of more than {LONGEST_RECORD:,} bytes, which no protein has", line)


def _with_plain_ends(stream: BinaryIO, before: bytes) -> bytes:
    """The next block, behind what was read before, its line ends made "\\n"."""
    block = before + stream.read(BLOCK)
    if b"\r" not in block:
        return block
    while block.endswith(b"\r") and (more := stream.read(1)):  # half of a line end?
        block += more
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _parse(block: bytes, line: int) -> Batch:
    """The records of a block, whose first line has this number."""
    if not block.startswith(b">") or not block.isascii():
        return _parse_lines(block, line)
    headers, sequences = [], []
    for record in block[1:].split(b"\n>"):
        header, _, body = record.partition(b"\n")
        headers.append(header.strip())
        sequences.append(body.replace(b"\n", b""))
    text = b"\n".join(sequences)
    if any(odd in text for odd in _ODD):
        return _parse_lines(block, line)
    joined = b"\n".join(headers)
    names = joined.decode().split("\n")
    kept, sequences, left_out = without_others(names, sequences, joined)
    return Batch(kept, b"\n".join(sequences), left_out=left_out) if left_out else Batch(names, text)


def _parse_lines(block: bytes, line: int) -> Batch:
    """The same, one line at a time."""
    headers: list[bytes] = []
    parts: list[list[bytes]] = []
    noted: Counter[str] = Counter()
    for number, text in enumerate(block.split(b"\n"), line):
        text = text.strip()
        if text.startswith(b">"):
            headers.append(text[1:].strip())
            parts.append([])
        elif not text or text.startswith(_COMMENTS):
            continue
        elif not headers:
            raise Malformed(f'not FASTA, which has lines such as ">name" and "MKV…", but {formats.named(text)}', number)
        elif b">" in text and _STRAY.search(text):
            residues, header = _divided(text, number)
            parts[-1].append(residues)
            headers.append(header)
            parts.append([])
            noted[BEGUN_IN_A_LINE] += 1
        elif not text.isascii():
            raise Malformed(f"{_shown(text)} holds bytes that are not ASCII, expected plain letters", number)
        else:
            parts[-1].append(text)
    names, sequences = [decoded(header) for header in headers], [b"".join(lines) for lines in parts]
    names, sequences, left_out = without_others(names, sequences, b"\n".join(headers))
    return Batch(names, b"\n".join(sequences), left_out=left_out, noted=noted)


def _divided(text: bytes, number: int) -> tuple[bytes, bytes]:
    """The end of one sequence and the header of the next record, which share a line."""
    found = _WITHIN.fullmatch(text)
    if not found:
        raise Malformed(
            f'{_shown(text)} has a ">" within a sequence and no record begins there. Were files joined without a line '
            "end between them? Put one before the header",
            number,
        )
    return found[1].strip(), found[2].strip()


def _shown(text: bytes) -> str:
    return repr(text[:40])
