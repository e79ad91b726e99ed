"""What an input is, from what its address says and its first bytes show, and the pieces in which it can be read.

An address is a file, a pattern, a folder of files, a dataset of the hub, "-" or http(s). It becomes sources, one a file
(or dataset), and each source pieces that workers read on their own: a plain FASTA or CSV file is cut every `PIECE`
bytes at a record, Parquet at its row groups, a dataset of the hub at its data files; whatever is compressed or comes
as a stream is one piece. What the pieces hold together depends on nothing but the source.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path

import pyarrow.parquet as parquet

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.fasta import Batch
from amplify_ds.prepare.readers import (
    COMPRESSED_NAMES,
    CSV_NAMES,
    FASTA_NAMES,
    TABLE_NAMES,
    is_csv,
    plain_name,
    read_arrow_file,
    read_data_file,
    read_row_group,
    read_section,
    read_stream,
    refusing,
)  # fmt: skip
from amplify_ds.prepare.streams import Progress, compression
from amplify_ds.prepare.tables import Columns, open_dataset, read_header

PIECE = 2**26
STANDARD_INPUT = "standard input"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[^:]*)?")


@dataclass(frozen=True)
class Piece:
    """A part of a source. `read(progress)` yields its batches; bytes: about what it will tell `progress`."""

    name: str
    bytes: int
    read: Callable[[Progress], Iterator[Batch]]


@dataclass(frozen=True)
class Source:
    """One file, stream or dataset. path, bytes: None where it is no file on disk.

    version: tells contents apart: two sources of the same version need not both be read.
    """

    name: str
    path: Path | None
    bytes: int | None
    version: str
    pieces: list[Piece] = field(repr=False)

    @property
    def passes_once(self) -> bool:
        """Whether what it holds cannot be read again."""
        return self.name == STANDARD_INPUT


def find_sources(addresses: Sequence[str], columns: Columns = Columns()) -> list[Source]:
    """Return the sources of all addresses; AmplifyError for one with nothing to read."""
    return [source for address in addresses for source in _find(address, columns)]


def _find(address: str, columns: Columns) -> list[Source]:
    if address == "-" or address.startswith(("http://", "https://")):
        name = STANDARD_INPUT if address == "-" else address
        version = f"{name} {time.time_ns()}" if address == "-" else address  # what comes through a pipe comes once
        return [Source(name, None, None, version, [_piece(name, 0, read_stream, address, address, columns)])]
    if Path(address).exists():
        return _local(Path(address), "", columns)
    if has_magic(address):
        if not (found := sorted(glob(address, recursive=True))):
            raise AmplifyError(f"no file matches {address}. Check the pattern and the directory.")
        return [source for path in found for source in _local(Path(path), "", columns)]
    folder, _, files = address.partition(":")
    if files and Path(folder).is_dir():
        return _local(Path(folder), files, columns)
    name_like_file = address.lower().endswith((*FASTA_NAMES, *CSV_NAMES, *COMPRESSED_NAMES, *TABLE_NAMES))
    if not files and name_like_file or not _HUB_NAME.fullmatch(address) or Path(folder).parent.is_dir():
        raise AmplifyError(
            f"there is no file {address}. Check the path; expected FASTA, CSV, Parquet, a folder of such files, the "
            "name of a dataset on the Hugging Face hub (OWNER/NAME:FOLDER/SPLIT), - or an http(s) address."
        )
    try:
        count = open_dataset(folder, files).num_shards
    except Exception as error:  # whatever the library raises: no such dataset, no such files, no network
        fetch = f"hf download {folder} --repo-type dataset --local-dir DIR"
        if folder == "chandar-lab/UR100P":
            fetch = "python data_prep/fetch_ur100p.py --output DIR"
        raise AmplifyError(
            f"there is no file {address}, and the dataset cannot be opened on the Hugging Face hub: {error} Without a "
            f"network, run {fetch} where there is one, copy DIR, and give DIR{':' * bool(files)}{files}."
        ) from error
    pieces = [
        _piece(f"{address} ({number + 1} of {count})", 0, read_data_file, folder, files, number, columns)
        for number in range(count)
    ]
    return [Source(address, None, None, f"{address} {columns}", pieces)]


def _local(path: Path, files: str, columns: Columns) -> list[Source]:
    """The sources at a path that exists; of a folder, the data files whose paths in it begin with `files`."""
    if not path.is_dir():
        return [_file(path, columns)]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and str(file.relative_to(path)).startswith(files)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and Path(plain_name(file)).suffix in (*FASTA_NAMES, *CSV_NAMES, *TABLE_NAMES)
    ]
    if not found:
        raise AmplifyError(
            f"the directory {path} holds no data file{f' that begins with {files}' if files else ''}, expected names "
            f"that end in {' '.join((*FASTA_NAMES, *CSV_NAMES, *TABLE_NAMES))}, compressed or not."
        )
    return [_file(file, columns) for file in found]


def _file(path: Path, columns: Columns) -> Source:
    place = str(path)
    if not path.is_file():
        raise AmplifyError(f"{path} is a device, expected a file. To read a pipe, give - and redirect it.")
    size = path.stat().st_size
    if not size:
        raise AmplifyError(f"{path} is empty, expected sequences. Was its download interrupted?")
    with refusing(place):
        with open(path, "rb") as file:
            head = file.read(8)
        if head.startswith(b"PAR1"):
            with parquet.ParquetFile(path) as table:
                columns.present(table.schema_arrow.names)
                groups = table.num_row_groups
            pieces = [
                _piece(f"{place}, row group {group}", size // groups, read_row_group, place, group, columns)
                for group in range(groups)
            ]
        elif head.startswith(b"\xff\xff\xff\xff"):
            pieces = [_piece(place, size, read_arrow_file, place, columns)]
        elif compression(head):
            pieces = [_piece(place, size, read_stream, place, place, columns)]
        else:
            pieces = _sections(path, size, columns)
    return Source(path.name, path, size, f"{path.resolve()} {size} {path.stat().st_mtime_ns} {columns}", pieces)


def _sections(path: Path, size: int, columns: Columns) -> list[Piece]:
    """Cut a plain text file."""
    with open(path, "rb") as file:
        header = read_header(file) if is_csv(str(path), file.read(2**12)) and not file.seek(0) else None
    if header:
        columns.present(header.names)
    bounds = [(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
    return [
        _piece(f"{path}, byte {start:,}", stop - start, read_section, str(path), (start, stop), header, columns)
        for start, stop in bounds
    ]


def _piece(name: str, size: int, read: Callable, *arguments: object) -> Piece:
    return Piece(name, size, partial(read, *arguments))
