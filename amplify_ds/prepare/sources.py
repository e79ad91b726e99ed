"""Resolve an address to sources (chunks.py), one per file or dataset: a file, a pattern, a folder of files, a hub
dataset, "-" or http(s)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from glob import glob, has_magic
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import formats, readers
from amplify_ds.prepare.batches import quoted
from amplify_ds.prepare.chunks import STANDARD_INPUT, Chunk, Source, chunk_of, source_of_file
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.tables import open_dataset

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[^:]*)?")
_MAX_NAMES = 20  # of files that are left out, in a message


def find_sources(
    addresses: Sequence[str], reading: Reading = Reading(), notify: Callable[[str], object] = lambda note: None
) -> list[Source]:
    """Return the sources of all addresses; AmplifyError for one with nothing to read.

    notify: is called with notes, such as which files are left out.
    """
    return [source for address in addresses for source in _find(address, reading, notify)]


def _find(address: str, reading: Reading, notify: Callable[[str], object]) -> list[Source]:
    if address == "-" or address.startswith(("http://", "https://")):
        name = STANDARD_INPUT if address == "-" else address
        version = (
            f"{name} {time.time_ns()}" if address == "-" else f"{address} {reading}"
        )  # a pipe cannot be read again
        return [_stream(name, version, chunk_of(name, 0, readers.read_stream, address, address, reading))]
    if Path(address).exists():
        return _local(Path(address), "", reading, notify)
    if has_magic(address):
        if not (paths := sorted(glob(address, recursive=True))):
            raise AmplifyError(f"no file matches {address}. Check the pattern and the directory.")
        return [source for path in paths for source in _local(Path(path), "", reading, notify)]
    folder, _, files = address.partition(":")
    if files and Path(folder).is_dir():
        return _local(Path(folder), files, reading, notify)
    name_like_file = address.lower().endswith((*formats.DATA_NAMES, *formats.COMPRESSED_NAMES, ".txt", ".fna"))
    if (not files and name_like_file) or not _HUB_NAME.fullmatch(address) or Path(folder).parent.is_dir():
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
            f"there is no file {address}, and no dataset of this name can be opened on the Hugging Face hub: {error} "
            f"Without a network, run {fetch} on a machine that has one, copy DIR, and give "
            f"DIR{':' * bool(files)}{files}."
        ) from error

    def chunk(name: str, numbers: range) -> Chunk:
        return chunk_of(name, 0, readers.read_data_files, folder, files, numbers, reading)

    chunks = [chunk(f"{address} ({number + 1} of {count})", range(number, number + 1)) for number in range(count)]
    whole = chunk(address, range(count))
    return [Source(address, None, None, f"{address} {reading}", whole, lambda cuts: chunks)]


def _local(path: Path, files: str, reading: Reading, notify: Callable[[str], object]) -> list[Source]:
    """Return the sources at an existing path; of a folder, the data files whose paths in it begin with `files`."""
    if not path.is_dir():
        return [source_of_file(path, reading, notify)]
    data_files: list[Path] = []
    others: list[Path] = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and str(name).startswith(files) and not any(part.startswith(".") for part in name.parts):
            (data_files if formats.suffix(file.name) in formats.DATA_NAMES else others).append(file)
    if not data_files:
        raise AmplifyError(
            f"the directory {path} holds no data file{f' that begins with {files}' if files else ''}, expected names "
            f"that end in {' '.join(formats.DATA_NAMES)}, compressed or not"
            f"{f', found {quoted(map(str, others))}; to read such files, give their names' if others else ''}."
        )
    if others:
        names = quoted((str(file.relative_to(path)) for file in others), _MAX_NAMES)
        notify(f"left out of {path}: {names}; to read such a file, give its name")
    return [source_of_file(file, reading, notify) for file in data_files]


def _stream(name: str, version: str, whole: Chunk) -> Source:
    return Source(name, None, None, version, whole, lambda cuts: [whole])
