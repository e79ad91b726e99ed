"""What an address means: a file, a pattern, a folder of files, a dataset of the hub, "-" or http(s). It becomes sources
(chunks.py), one per file or dataset."""

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
_SHOWN = 20  # names of files that are left out


def find_sources(
    addresses: Sequence[str], reading: Reading = Reading(), tell: Callable[[str], object] = lambda note: None
) -> list[Source]:
    """Return the sources of all addresses; AmplifyError for one with nothing to read. tell: what is left out."""
    return [source for address in addresses for source in _find(address, reading, tell)]


def _find(address: str, reading: Reading, tell: Callable[[str], object]) -> list[Source]:
    if address == "-" or address.startswith(("http://", "https://")):
        name = STANDARD_INPUT if address == "-" else address
        version = f"{name} {time.time_ns()}" if address == "-" else f"{address} {reading}"  # a pipe comes once
        return [_stream(name, version, chunk_of(name, 0, readers.read_stream, address, address, reading))]
    if Path(address).exists():
        return _local(Path(address), "", reading, tell)
    if has_magic(address):
        if not (found := sorted(glob(address, recursive=True))):
            raise AmplifyError(f"no file matches {address}. Check the pattern and the directory.")
        return [source for path in found for source in _local(Path(path), "", reading, tell)]
    folder, _, files = address.partition(":")
    if files and Path(folder).is_dir():
        return _local(Path(folder), files, reading, tell)
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
            f"there is no file {address}, and the dataset cannot be opened on the Hugging Face hub: {error} Without a "
            f"network, run {fetch} where there is one, copy DIR, and give DIR{':' * bool(files)}{files}."
        ) from error

    def chunk(name: str, numbers: range) -> Chunk:
        return chunk_of(name, 0, readers.read_data_files, folder, files, numbers, reading)

    chunks = [chunk(f"{address} ({number + 1} of {count})", range(number, number + 1)) for number in range(count)]
    whole = chunk(address, range(count))
    return [Source(address, None, None, f"{address} {reading}", whole, lambda cuts: chunks)]


def _local(path: Path, files: str, reading: Reading, tell: Callable[[str], object]) -> list[Source]:
    """The sources at a path that exists; of a folder, the data files whose paths in it begin with `files`."""
    if not path.is_dir():
        return [source_of_file(path, reading, tell)]
    found: list[Path] = []
    others: list[Path] = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and str(name).startswith(files) and not any(part.startswith(".") for part in name.parts):
            (found if formats.suffix(file.name) in formats.DATA_NAMES else others).append(file)
    if not found:
        raise AmplifyError(
            f"the directory {path} holds no data file{f' that begins with {files}' if files else ''}, expected names "
            f"that end in {' '.join(formats.DATA_NAMES)}, compressed or not"
            f"{f', found {quoted(map(str, others))}; give such files by their own names' if others else ''}."
        )
    if others:
        names = quoted((str(file.relative_to(path)) for file in others), _SHOWN)
        tell(f"left out of {path}: {names}; to read such a file, give its own name")
    return [source_of_file(file, reading, tell) for file in found]


def _stream(name: str, version: str, whole: Chunk) -> Source:
    return Source(name, None, None, version, whole, lambda cuts: [whole])
