"""Open an input as one file object of bytes: a file or part of it, compressed or not, standard input, http.

Compression is recognised by the first bytes, never by the name. Progress is reported in bytes before decompression.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from xopen import xopen

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.download import Http
from amplify_ds.prepare.formats import UTF16_MARKS

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Progress = Callable[[int], object]
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst"}
Readable = io.RawIOBase | io.BufferedIOBase
BUFFER = 2**20
_SCAN = 2**16


def compression(head: bytes) -> str | None:
    """Return the name of the compression whose files begin with `head`, None if there is none."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def open_stream(address: str, progress: Progress) -> io.BufferedReader:
    """Return a whole input, decompressed and in UTF-8: a path, "-" for standard input, or an http(s) address."""
    if address == "-":
        raw: Readable = cast(io.BufferedReader, sys.stdin.buffer)
    elif address.startswith(("http://", "https://")):
        raw = Http(address)
    else:
        raw = open(address, "rb", buffering=0)
    return buffered(Counted(raw, progress))


def buffered(raw: Readable) -> io.BufferedReader:
    """Return the stream, decompressed if necessary, and UTF-16 (known by its first two bytes) converted to UTF-8."""
    stream: io.BufferedReader[Any] = io.BufferedReader(_Full(raw), BUFFER)
    if name := compression(stream.peek(8)[:8]):
        stream = io.BufferedReader(_Full(_Decompressed(stream, name)), BUFFER)
    if encoding := UTF16_MARKS.get(stream.peek(2)[:2]):
        stream = io.BufferedReader(_Utf8(stream, encoding), BUFFER)
    return stream


def open_section(path: str, start: int, stop: int, separator: bytes, progress: Progress) -> tuple[BinaryIO, int]:
    """Return a stream of the records of a plain file that begin in [start, stop), and the byte at which it begins.

    A record begins after every `separator`. Its last byte belongs to the record unless it is a line end, so that
    b"\\n>" cuts FASTA and b"\\n" cuts lines. Sections with adjoining bounds hold every record once. If the separator is
    empty, records begin at the bounds.
    """
    file = open(path, "rb", buffering=0)
    begin, end = (_boundary(file, bound, separator) if separator else bound for bound in (start, stop))
    file.seek(begin)
    return io.BufferedReader(Counted(file, progress, max(0, end - begin)), BUFFER), begin


def _boundary(file: BinaryIO, position: int, separator: bytes) -> int:
    """Return where the first record at or after `position` begins, or the end of the file."""
    if position == 0:
        return 0
    inside = 0 if separator.endswith(b"\n") else 1  # bytes of the separator that belong to the record
    offset = max(0, position + inside - len(separator))
    file.seek(offset)
    tail = b""
    while block := file.read(_SCAN):
        index = (tail + block).find(separator)
        if index >= 0:
            return offset - len(tail) + index + len(separator) - inside
        offset += len(block)
        tail = (tail + block)[-(len(separator) - 1) :] if len(separator) > 1 else b""
    return offset


class _Full(io.RawIOBase):
    """A stream that fills every read except the last, so that `peek` does not return only part of a line."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view, read = memoryview(buffer), 0
        while read < len(view) and (more := self._stream.readinto(view[read:])):
            read += more
        return read

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Decompressed(io.RawIOBase):
    """The content of a compressed stream. Raises OSError if it is damaged, with any of the libraries."""

    def __init__(self, stream: BinaryIO, compression: str) -> None:
        self._stream = xopen(stream, "rb", threads=0, format=compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        try:
            data = self._stream.read(len(view))
        except (AmplifyError, OSError):
            raise
        except Exception as error:
            raise OSError(str(error)) from error
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Utf8(io.RawIOBase):
    """A stream of UTF-16, converted to UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._decoder, self._left = stream, codecs.getincrementaldecoder(encoding)(), b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._left and not self._ended:
            block = self._stream.read(BUFFER)
            self._ended = not block
            self._left = self._decoder.decode(block, final=self._ended).encode(errors="replace")
        view = memoryview(buffer)
        data, self._left = self._left[: len(view)], self._left[len(view) :]
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class Counted(io.RawIOBase):
    """A readable file, or its next `size` bytes, that reports to `progress` how many bytes were read."""

    def __init__(self, file: Readable, progress: Progress, size: int | None = None) -> None:
        self._file, self._progress, self._left = file, progress, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)[: self._left]
        read = self._file.readinto(view)
        if read is None:
            raise BlockingIOError("no bytes are ready, and the input is in non-blocking mode")
        if self._left is not None:
            self._left -= read
        self._progress(read)
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
