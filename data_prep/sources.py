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
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
from fasta import Batch, Malformed, read_fasta
from streams import Progress, compression, open_section, open_stream
from tables import Columns, open_dataset, read_arrow, read_csv, read_dataset, read_header, read_parquet

from amplify_ds.errors import AmplifyError

PIECE = 2**26
STANDARD_INPUT = "standard input"
FASTA_NAMES, CSV_NAMES = (".fasta", ".fa", ".faa", ".fas"), (".csv", ".tsv")
_COMPRESSED_NAMES = (".gz", ".zst", ".bz2", ".xz")
_TABLE_NAMES = (".parquet", ".arrow")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[^:]*)?")
_BROKEN = (OSError, ValueError, pa.ArrowException)  # what damaged files raise


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
        return [Source(name, None, None, version, [_piece(name, 0, _read_stream, address, address, columns)])]
    if Path(address).exists():
        return _local(Path(address), "", columns)
    if has_magic(address):
        if not (found := sorted(glob(address, recursive=True))):
            raise AmplifyError(f"no file matches {address}. Check the pattern and the directory.")
        return [source for path in found for source in _local(Path(path), "", columns)]
    folder, _, files = address.partition(":")
    if files and Path(folder).is_dir():
        return _local(Path(folder), files, columns)
    name_like_file = address.lower().endswith((*FASTA_NAMES, *CSV_NAMES, *_COMPRESSED_NAMES, *_TABLE_NAMES))
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
        _piece(f"{address} ({number + 1} of {count})", 0, _read_hub, folder, files, number, columns)
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
        and Path(_plain_name(file)).suffix in (*FASTA_NAMES, *CSV_NAMES, *_TABLE_NAMES)
    ]
    if not found:
        raise AmplifyError(
            f"the directory {path} holds no data file{f' that begins with {files}' if files else ''}, expected names "
            f"that end in {' '.join((*FASTA_NAMES, *CSV_NAMES, *_TABLE_NAMES))}, compressed or not."
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
                _piece(f"{place}, row group {group}", size // groups, _read_parquet, place, group, columns)
                for group in range(groups)
            ]
        elif head.startswith(b"\xff\xff\xff\xff"):
            pieces = [_piece(place, size, _read_arrow, place, columns)]
        elif compression(head):
            pieces = [_piece(place, size, _read_stream, place, place, columns)]
        else:
            pieces = _sections(path, size, columns)
    return Source(path.name, path, size, f"{path.resolve()} {size} {path.stat().st_mtime_ns} {columns}", pieces)


def _sections(path: Path, size: int, columns: Columns) -> list[Piece]:
    """Cut a plain text file."""
    with open(path, "rb") as file:
        header = read_header(file) if _is_csv(str(path), file.read(2**12)) and not file.seek(0) else None
    if header:
        columns.present(header.names)
    bounds = range(0, size, PIECE)
    return [
        _piece(f"{path}, byte {start:,}", min(PIECE, size - start), _read_section, str(path), start, header, columns)
        for start in bounds
    ]


def _is_csv(address: str, head: bytes) -> bool:
    """By the name, or else by the first line: FASTA begins with ">", and the first line of CSV has several columns."""
    suffix = Path(_plain_name(Path(address))).suffix
    if suffix in (*FASTA_NAMES, *CSV_NAMES):
        return suffix in CSV_NAMES
    line = head.lstrip().split(b"\n")[0]
    return not line.startswith((b">", b"#", b";")) and (b"," in line or b"\t" in line)


def _plain_name(path: Path) -> str:
    name = path.name.lower()
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in _COMPRESSED_NAMES else name


def _piece(name: str, size: int, read: Callable, *arguments: object) -> Piece:
    return Piece(name, size, partial(read, *arguments))


def _read_stream(address: str, place: str, columns: Columns, progress: Progress) -> Iterator[Batch]:
    damaged = " The input is compressed or a stream, and may be damaged: test it (gzip -t), fetch it again."
    with refusing(place, damaged), open_stream(address, progress) as stream:
        csv = _is_csv(address, stream.peek(2**12))
        yield from read_csv(stream, None, columns) if csv else read_fasta(stream)


def _read_section(path: str, start: int, header, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(path):
        stream, begin = open_section(path, start, start + PIECE, b"\n" if header else b"\n>", progress)
    with stream, refusing(path, begin=begin):
        yield from read_csv(stream, header if start else None, columns) if header else read_fasta(stream)


def _read_parquet(path: str, group: int, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(path):
        yield from _telling(read_parquet(path, range(group, group + 1), columns), progress)


def _read_arrow(path: str, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(path):
        yield from _telling(read_arrow(path, columns), progress)


def _read_hub(name: str, files: str, number: int, columns: Columns, progress: Progress) -> Iterator[Batch]:
    with refusing(f"{name}:{files}"):
        yield from _telling(read_dataset(name, files, number, columns), progress)


def _telling(batches: Iterator[Batch], progress: Progress) -> Iterator[Batch]:
    for batch in batches:
        progress(sum(map(len, batch.sequences)))
        yield batch


@contextmanager
def refusing(place: str, hint: str = "", begin: int = 0) -> Iterator[None]:
    """Turn what a reader raises in the block into an AmplifyError that names the place and, if there is one, the line.

    begin: the byte of the file at which the stream of the block began: the lines before it count too.
    """
    try:
        yield
    except Malformed as error:
        line = "" if error.line is None else f", line {error.line + _lines(place, begin):,}"
        raise AmplifyError(f"{place}{line}: {error.message}.{hint}") from error
    except _BROKEN as error:
        raise AmplifyError(
            f"{place} cannot be read to its end: {error}. Is it still there and complete?{hint}"
        ) from error


def _lines(path: str, stop: int) -> int:
    """Count the lines of the first `stop` bytes of a file."""
    if not stop:
        return 0
    with open(path, "rb") as file:
        return sum(file.read(min(2**20, stop - start)).count(b"\n") for start in range(0, stop, 2**20))
