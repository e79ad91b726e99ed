"""What an input is, from what its address says and its first bytes show, and the pieces in which it can be read.

An address is a file, a pattern, a folder of files, a dataset of the hub, "-" or http(s). It becomes sources, one per
file (or dataset). A source can be read from beginning to end, or in pieces that workers read on their own: FASTA is cut
every `PIECE` bytes at a record; Parquet at its row groups; a zip archive at its members; a dataset of the hub at its
data files. In a table of text a line end may be part of a cell, and only from its beginning on can be told which are:
where it can be cut is found while the file is hashed (`cutter`). Whatever is compressed or comes as a stream is one
piece. What the pieces hold together depends on nothing but the source.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import archives, forms, readers, rows
from amplify_ds.prepare.batches import Batch, quoted
from amplify_ds.prepare.options import Reading
from amplify_ds.prepare.streams import Progress, compression
from amplify_ds.prepare.tables import open_dataset

STANDARD_INPUT = "standard input"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[^:]*)?")
_SHOWN = 20  # names of files that are left out


@dataclass(frozen=True)
class Piece:
    """A part of a source. `read(progress)` yields its batches; bytes: about what it will tell `progress`."""

    name: str
    bytes: int
    read: Callable[[Progress], Iterator[Batch]]


@dataclass(frozen=True)
class Source:
    """One file, stream or dataset. path, bytes: None where it is no file on disk.

    version: tells contents apart: two sources of the same version need not both be read. whole: all of it as one piece.
    cutter: makes what finds the places to cut a file at, None where it needs none; `pieces` takes those places.
    """

    name: str
    path: Path | None
    bytes: int | None
    version: str
    whole: Piece
    pieces: Callable[[Sequence[int]], list[Piece]] = field(repr=False)
    cutter: Callable[[], rows.Cutter] | None = None

    @property
    def passes_once(self) -> bool:
        """Whether what it holds cannot be read again."""
        return self.name == STANDARD_INPUT

    def read(self, progress: Progress = lambda read: None) -> Iterator[Batch]:
        return self.whole.read(progress)


def find_sources(
    addresses: Sequence[str], reading: Reading = Reading(), tell: Callable[[str], object] = lambda note: None
) -> list[Source]:
    """Return the sources of all addresses; AmplifyError for one with nothing to read. tell: what is left out."""
    return [source for address in addresses for source in _find(address, reading, tell)]


def version_of(path: Path, reading: Reading) -> str:
    """What differs between two contents of a file, or ways to read it."""
    return f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns} {reading}"


def _find(address: str, reading: Reading, tell: Callable[[str], object]) -> list[Source]:
    if address == "-" or address.startswith(("http://", "https://")):
        name = STANDARD_INPUT if address == "-" else address
        version = f"{name} {time.time_ns()}" if address == "-" else f"{address} {reading}"  # a pipe comes once
        return [_single(name, None, None, version, _piece(name, 0, readers.read_stream, address, address, reading))]
    if Path(address).exists():
        return _local(Path(address), "", reading, tell)
    if has_magic(address):
        if not (found := sorted(glob(address, recursive=True))):
            raise AmplifyError(f"no file matches {address}. Check the pattern and the directory.")
        return [source for path in found for source in _local(Path(path), "", reading, tell)]
    folder, _, files = address.partition(":")
    if files and Path(folder).is_dir():
        return _local(Path(folder), files, reading, tell)
    name_like_file = address.lower().endswith((*forms.DATA_NAMES, *forms.COMPRESSED_NAMES, ".txt", ".fna"))
    if not files and name_like_file or not _HUB_NAME.fullmatch(address) or Path(folder).parent.is_dir():
        raise AmplifyError(
            f"there is no file {address}. Check the path; expected FASTA, a table, an archive or a folder of such "
            "files, the name of a dataset on the Hugging Face hub (OWNER/NAME:FOLDER/SPLIT), - or an http(s) address."
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

    def piece(name: str, numbers: range) -> Piece:
        return _piece(name, 0, readers.read_data_files, folder, files, numbers, reading)

    pieces = [piece(f"{address} ({number + 1} of {count})", range(number, number + 1)) for number in range(count)]
    whole = piece(address, range(count))
    return [Source(address, None, None, f"{address} {reading}", whole, lambda cuts: pieces)]


def _local(path: Path, files: str, reading: Reading, tell: Callable[[str], object]) -> list[Source]:
    """The sources at a path that exists; of a folder, the data files whose paths in it begin with `files`."""
    if not path.is_dir():
        return [_file(path, reading, tell)]
    found, others = [], []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and str(name).startswith(files) and not any(part.startswith(".") for part in name.parts):
            (found if forms.suffix(file.name) in forms.DATA_NAMES else others).append(file)
    if not found:
        raise AmplifyError(
            f"the directory {path} holds no data file{f' that begins with {files}' if files else ''}, expected names "
            f"that end in {' '.join(forms.DATA_NAMES)}, compressed or not"
            f"{f', found {quoted(map(str, others))}; give such files by their own names' if others else ''}."
        )
    if others:
        names = quoted((str(file.relative_to(path)) for file in others), _SHOWN)
        tell(f"left out of {path}: {names}; to read such a file, give its own name")
    return [_file(file, reading, tell) for file in found]


def _file(path: Path, reading: Reading, tell: Callable[[str], object]) -> Source:
    place = str(path)
    if not path.is_file():
        raise AmplifyError(f"{path} is a device, expected a file. To read a pipe, give - and redirect it.")
    size = path.stat().st_size
    if not size:
        raise AmplifyError(f"{path} is empty, expected sequences. Was its download interrupted?")
    with readers.refusing(place), open(path, "rb") as file:
        head = file.read(forms.HEAD)
    make = partial(_source_of, path, size, version_of(path, reading), reading)
    match forms.binary_form(head):
        case "parquet":
            source = make(*_parquet(place, size, reading))
        case "arrow file" | "arrow stream" as form:
            source = make(_piece(place, size, readers.read_arrow, place, form, reading))
        case "zip":
            source = make(*_zip(place, reading, tell))
        case _:
            if compression(head) or head.startswith(tuple(forms.UTF16_MARKS)) or archives.is_tar(head):
                source = make(_piece(place, size, readers.read_stream, place, place, reading))
            else:
                source = make(*_text(place, head, size, reading))
    first = next(source.read(), None)  # what is no input of proteins is refused at once
    if first and first.named and first.ids is None and reading.of_columns:
        tell(f"{path} is FASTA: {', '.join(reading.of_columns)} are for tables, and mean nothing for it")
    return source


def _source_of(
    path: Path, size: int, version: str, reading: Reading, whole: Piece,
    pieces: Callable[[Sequence[int]], list[Piece]] | None = None, cutter: Callable[[], rows.Cutter] | None = None,
) -> Source:  # fmt: skip
    return Source(path.name, path, size, version, whole, pieces or (lambda cuts: [whole]), cutter)


def _single(name: str, path: Path | None, size: int | None, version: str, whole: Piece) -> Source:
    return Source(name, path, size, version, whole, lambda cuts: [whole])


def _parquet(place: str, size: int, reading: Reading) -> tuple:
    _, groups = readers.parquet_layout(place, reading)

    def pieces(cuts: Sequence[int]) -> list[Piece]:
        share = size // max(1, groups)
        return [
            _piece(
                f"{place}, row group {number}", share, readers.read_parquet, place, range(number, number + 1), reading
            )
            for number in range(groups)
        ]

    return _piece(place, size, readers.read_parquet, place, None, reading), pieces


def _zip(place: str, reading: Reading, tell: Callable[[str], object]) -> tuple:
    with readers.refusing(place):
        members, others = archives.zip_members(place)
    if others:
        tell(f"left out of {place}: {quoted(others, _SHOWN)}")
    parts: list[list[archives.Member]] = []
    filled = rows.PIECE
    for member in members:
        if filled >= rows.PIECE:
            parts.append([])
            filled = 0
        parts[-1].append(member)
        filled += member.bytes
    pieces = [
        _piece(f"{place}, {part[0]}", sum(member.bytes for member in part), readers.read_members, place, part, reading)
        for part in parts
    ]
    whole = _piece(place, sum(piece.bytes for piece in pieces), readers.read_members, place, members, reading)
    return whole, lambda cuts: pieces


def _text(place: str, head: bytes, size: int, reading: Reading) -> tuple:
    """A plain file: FASTA is cut anywhere, a table where a cutter says."""
    whole = _piece(place, size, readers.read_stream, place, place, reading, damaged="")
    with readers.refusing(place):
        form = forms.text_form(head, place, reading.of_tables)
    if form == "fasta":
        bounds = [(start, min(start + rows.PIECE, size)) for start in range(0, size, rows.PIECE)]
        return whole, lambda cuts: _sections(place, bounds, readers.read_fasta_section, reading)
    if form == "delimited":
        layout, chosen = readers.layout_of(place, reading)
    else:
        layout, chosen = None, readers.json_choice(place, reading)
    begin = layout.offset if layout else 0

    def pieces(cuts: Sequence[int]) -> list[Piece]:
        places = [begin, *cuts, size]
        return _sections(place, list(zip(places, places[1:])), readers.read_rows, layout, chosen, reading)

    return whole, pieces, partial(rows.Cutter, layout.quoted if layout else None, begin)


def _sections(place: str, bounds: Sequence[tuple[int, int]], read: Callable, *arguments: object) -> list[Piece]:
    return [
        _piece(f"{place}, byte {start:,}", stop - start, read, place, (start, stop), *arguments)
        for start, stop in bounds
    ]


def _piece(name: str, size: int, read: Callable, *arguments: object, **others: object) -> Piece:
    return Piece(name, size, _Reader(read, arguments, others))


class _Reader:
    """`read(*arguments, progress)`, for another process too."""

    def __init__(self, read: Callable, arguments: tuple, others: dict) -> None:
        self._read, self._arguments, self._others = read, arguments, others

    def __call__(self, progress: Progress) -> Iterator[Batch]:
        return self._read(*self._arguments, progress, **self._others)
