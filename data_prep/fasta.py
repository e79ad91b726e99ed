"""Read FASTA, plain or gzip, in batches of sequences; hash the file's bytes on the way.

The manifest then names exactly what was read, and the progress bar follows the compressed file. Parsing is dnaio's,
decompression xopen's; whatever they reject becomes one message with file and line.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from dnaio import FastaReader, FileFormatError
from xopen import xopen

from amplify_ds.errors import AmplifyError

BATCH = 1024  # records handed over at a time
_BUFFER = 2**20
_GZIP = b"\x1f\x8b"


class FastaFile:
    """One FASTA file on disk.

    path: Path. bytes: int, its size. compressed: bool, seen from the content, not from the name. sha256: str, of the
    bytes that `batches` or `hash` has read to the end.
    """

    def __init__(self, path: Path) -> None:
        """AmplifyError if there is nothing to read at `path`."""
        if not path.exists():
            raise AmplifyError(f"there is no file {path}. Check the path; expected a FASTA file, plain or gzip.")
        if not path.is_file():
            raise AmplifyError(
                f"{path} is a directory or a device, expected a FASTA file, plain or gzip. Give the "
                "files of a directory one by one, for example as DIRECTORY/*.fasta.gz."
            )
        self.path = path
        self.bytes = path.stat().st_size
        self.sha256 = ""
        if not self.bytes:
            raise AmplifyError(f"{path} is empty, expected a FASTA file. Was its download interrupted?")
        try:
            with open(path, "rb") as file:
                self.compressed = file.read(len(_GZIP)) == _GZIP
        except OSError as error:
            raise AmplifyError(f"{path} cannot be read: {error.strerror}.") from error

    @property
    def estimated_text_bytes(self) -> int:
        """The size of the text; gzip makes proteins about two times smaller."""
        return self.bytes * (2 if self.compressed else 1)

    def hash(self) -> None:
        """Read the file to its end for nothing but its `sha256`."""
        with _Hashed(self.path, lambda read: None) as source:
            while source.read(_BUFFER):
                pass
            self.sha256 = source.digest.hexdigest()

    def batches(self, progress: Callable[[int], object] = lambda read: None) -> Iterator[list[bytes]]:
        """Yield the sequences in lists of at most `BATCH`, line ends removed, otherwise as they stand in the file.

        `progress` is called with the number of (compressed) bytes just read.
        """
        try:
            yield from self._parse(progress)
        except (EOFError, OSError, zlib.error) as error:
            raise AmplifyError(
                f"{self.path} cannot be read to its end: {error}. If it is compressed, test it with "
                "`gzip -t` and fetch it again."
            ) from error

    def _parse(self, progress: Callable[[int], object]) -> Iterator[list[bytes]]:
        with _Hashed(self.path, progress) as source, self._text(source) as stream, FastaReader(stream) as reader:
            sequences = (record.sequence.encode() for record in reader)
            try:
                while batch := list(islice(sequences, BATCH)):
                    yield batch
            except (UnicodeDecodeError, FileFormatError) as error:
                raise self._malformed(error) from error
            if not reader.number_of_records:
                raise AmplifyError(f'{self.path} holds no FASTA record, expected lines such as ">name" and "MKV…".')
            self.sha256 = source.digest.hexdigest()

    def _text(self, source: _Hashed) -> BinaryIO:
        buffered = io.BufferedReader(source, _BUFFER)
        return xopen(buffered, "rb", threads=0, format="gz") if self.compressed else buffered

    def _malformed(self, error: Exception) -> AmplifyError:
        """Say which line is not ASCII, or which is not FASTA. dnaio does not know the former, so look again."""
        damaged = " The file is compressed and may be damaged: test it with `gzip -t`." if self.compressed else ""
        with _Hashed(self.path, lambda read: None) as source, self._text(source) as stream:
            for number, line in enumerate(stream, 1):
                if not line.isascii():
                    return AmplifyError(
                        f"{self.path}, line {number}: {line[:40]!r} holds bytes that are not ASCII. "
                        f"Expected FASTA in plain ASCII letters.{damaged}"
                    )
        return AmplifyError(
            f"{self.path}, line {error.line + 1}: not FASTA. {error.message} Expected lines such as "
            f'">name" and "MKV…".{damaged}'
        )


class _Hashed(io.RawIOBase):
    """A file read from beginning to end, hashed and reported as it is read."""

    def __init__(self, path: Path, progress: Callable[[int], object]) -> None:
        self.digest = hashlib.sha256()
        self._file = open(path, "rb", buffering=0)
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:
        read = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:read])
        self._progress(read)
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
