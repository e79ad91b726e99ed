"""Read FASTA from a stream of bytes, in batches of records.

A block of whole records is split at every line end before a ">": header, line end, lines of a sequence. This is fast,
and correct if the block holds only headers and residues. Any other block is read line by line, without the blanks
around a line, empty lines and comments (lines that begin with # or ;). Both ways give the same records.

Files that were joined without a line end between them have a record that begins within a line (`…DWE>b`): after
residues, a ">" and a name begin a record, which is counted; any other ">" in a sequence is an error, except in the
special tokens (`<mask>`). Sequences are ASCII; headers are UTF-8, or else Latin-1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from amplify_ds.prepare import formats
from amplify_ds.prepare.batches import LONGEST_RECORD, Batch, Malformed, decoded, drop_non_proteins
from amplify_ds.vocab import SPECIAL

BLOCK = 2**20
BEGUN_IN_A_LINE = "records begun within a line"
_SPECIAL_CASES = (b" ", b"\t", b"\x0b", b"\x0c", b"#", b";", b">")  # in a sequence: read it line by line
_COMMENTS = (b"#", b";")
_TOKEN = "|".join(SPECIAL).encode()
_WITHIN = re.compile(rb"((?:[A-Za-z*|.\- \t]|" + _TOKEN + rb")+)>(.*\S.*)")  # residues, then a record
_STRAY = re.compile(b"".join(b"(?<!%b)" % token[:-1].encode() for token in SPECIAL) + b">")


def read_fasta(stream: BinaryIO) -> Iterator[Batch]:
    """Yield the records of `stream`; raise Malformed if it is not FASTA of proteins."""
    line, carry = 1, b""
    before = stream.read(len(formats.UTF8_MARK)).removeprefix(formats.UTF8_MARK)
    while True:
        new, before = _with_plain_ends(stream, before), b""
        text = carry + new
        cut = text.rfind(b"\n>", max(0, len(carry) - 1)) + 1 if new else len(text)
        block, carry = text[:cut], text[cut:]
        if block:
            yield _parse(block, line)
            line += block.count(b"\n")
        if not new:
            return
        if len(carry) > LONGEST_RECORD:
            line += carry.count(b"\n")
            raise Malformed(f"a record of more than {LONGEST_RECORD:,} bytes, longer than any protein", line)


def _with_plain_ends(stream: BinaryIO, before: bytes) -> bytes:
    """Return the next block with "\\n" as line ends; before: text in front of it."""
    block = before + stream.read(BLOCK)
    if b"\r" not in block:
        return block
    while block.endswith(b"\r") and (more := stream.read(1)):  # it may be half of a line end
        block += more
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _parse(block: bytes, line: int) -> Batch:
    """Return the records of a block; line: the number of its first line."""
    if not block.startswith(b">") or not block.isascii():
        return _parse_lines(block, line)
    headers, sequences = [], []
    for record in block[1:].split(b"\n>"):
        header, _, body = record.partition(b"\n")
        headers.append(header.strip())
        sequences.append(body.replace(b"\n", b""))
    text = b"\n".join(sequences)
    if any(case in text for case in _SPECIAL_CASES):
        return _parse_lines(block, line)
    joined = b"\n".join(headers)
    names = joined.decode().split("\n")
    kept, sequences, left_out = drop_non_proteins(names, sequences, joined)
    return Batch(kept, b"\n".join(sequences), left_out=left_out) if left_out else Batch(names, text)


def _parse_lines(block: bytes, line: int) -> Batch:
    """Return the same as `_parse`, read one line at a time."""
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
            raise Malformed(
                f'not FASTA: expected lines such as ">name" and "MKV…", found {formats.describe_line(text)}', number
            )
        elif b">" in text and _STRAY.search(text):
            residues, header = _split_line(text, number)
            parts[-1].append(residues)
            headers.append(header)
            parts.append([])
            noted[BEGUN_IN_A_LINE] += 1
        elif not text.isascii():
            raise Malformed(f"{_excerpt(text)} holds bytes that are not ASCII, expected plain letters", number)
        else:
            parts[-1].append(text)
    names, sequences = [decoded(header) for header in headers], [b"".join(lines) for lines in parts]
    names, sequences, left_out = drop_non_proteins(names, sequences, b"\n".join(headers))
    return Batch(names, b"\n".join(sequences), left_out=left_out, noted=noted)


def _split_line(text: bytes, number: int) -> tuple[bytes, bytes]:
    """Return the end of one sequence and the header of the next record, which share a line."""
    match = _WITHIN.fullmatch(text)
    if not match:
        raise Malformed(
            f'{_excerpt(text)} has a ">" within a sequence and no record begins there. Were files joined without a '
            "line end between them? Put one before the header",
            number,
        )
    return match[1].strip(), match[2].strip()


def _excerpt(text: bytes) -> str:
    return repr(text[:40])
