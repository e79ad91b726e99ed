"""Read the members of zip and tar archives as streams. Nothing is unpacked to disk, so no member name can do harm."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from amplify_ds.prepare.batches import Malformed, quoted
from amplify_ds.prepare.formats import COMPRESSED_NAMES, DATA_NAMES, suffix

_RATIO, _FREE = 200, 10**8  # text compresses about tenfold; a member that expands to more than this is a zip bomb
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError)
_TAR_MAGIC = slice(257, 262)


class Member(str):
    """The name of a data file in an archive; bytes: approximately its compressed size."""

    bytes: int = 0


def is_tar(head: bytes) -> bool:
    return head[_TAR_MAGIC] == b"ustar"


def zip_members(path: str) -> tuple[list[Member], list[str]]:
    """Return the data files of a zip archive and the names of its other members. Raises Malformed."""
    with _zip(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
    if any(info.filename == "[Content_Types].xml" for info in infos):
        raise Malformed("it is an Excel or Word file; save it as CSV")
    for info in infos:
        if info.flag_bits & 1:
            raise Malformed(f"{info.filename} is encrypted; unpack it and give the files")
        if info.file_size > _FREE + _RATIO * info.compress_size:
            raise Malformed(
                f"{info.filename} would expand from {info.compress_size:,} to {info.file_size:,} bytes. If that is "
                "intended, unpack it and give the files"
            )
    names, others = _data_files([info.filename for info in infos])
    sizes = {info.filename: info.compress_size for info in infos}
    members = [Member(name) for name in names]
    for member in members:
        member.bytes = sizes[member]
    if len(set(members)) < len(members):
        raise Malformed("two members have the same name; unpack it and give the files")
    return members, others


@contextmanager
def zip_member(path: str, name: str) -> Iterator[BufferedIOBase]:
    with _zip(path) as archive, archive.open(str(name)) as stream:
        yield cast(BufferedIOBase, stream)  # a ZipExtFile


@contextmanager
def _zip(path: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _DAMAGED as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def tar_members(stream: BinaryIO, others: list[str]) -> Iterator[tuple[str, BufferedIOBase]]:
    """Yield (name, content) of each data file of a tar archive, in order; append the names of the rest to `others`.

    Raises Malformed at the end if there is no data file.
    """
    has_data = False
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                if info.isfile() and _is_data(info.name, single=False):
                    has_data = True
                    yield info.name, cast(BufferedIOBase, archive.extractfile(info))  # never None for a file
                elif not info.isdir() and not _hidden(info.name):
                    others.append(info.name)
    except tarfile.TarError as error:
        raise OSError(f"tar: {error}") from error
    if not has_data:
        raise Malformed(f"the tar archive holds no data file, only {quoted(others) or 'nothing'}")


def _data_files(names: Sequence[str]) -> tuple[list[str], list[str]]:
    visible = [name for name in names if not _hidden(name)]
    data_files = [name for name in names if _is_data(name, single=len(visible) == 1)]
    if not data_files:
        raise Malformed(f"the archive holds no data file, only {quoted(names) or 'nothing'}")
    return data_files, [name for name in visible if name not in set(data_files)]


def _is_data(name: str, single: bool) -> bool:
    ending = suffix(name)
    known = ending in DATA_NAMES or (ending == "" and PurePosixPath(name).suffix in COMPRESSED_NAMES)
    return not _hidden(name) and (single or known)


def _hidden(name: str) -> bool:
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))
