"""What a fetched folder says of itself in fetched.json, and whether its files are those.

fetched.json is written before the first file comes. It pins a commit of the dataset, so that whatever is fetched later
is of the same version, and names every data file of that commit with its size and the checksum that the hub gives:
sha256 for files in LFS, for small ones the SHA-1 under which git stores them. Checking a folder needs no network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from amplify_ds.data.shard_writer import writing
from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.structured import read_json

REPOSITORY: Final = "chandar-lab/UR100P"
LICENCE = "CC-BY-4.0"
FETCHED = "fetched.json"
_AGAIN = "Delete it; the next fetch checks the files against the hub and writes it again."
_DATA_FILE = r"^[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)*\.csv$"  # below the folder, nothing hidden
_BLOCK = 2**20


class File(BaseModel):
    """One of the checksums, if the hub gives any."""

    bytes: int = Field(ge=0)
    sha256: str | None = None
    git_sha1: str | None = None


class Listing(BaseModel):
    """The content of fetched.json. parts: what was asked for; files: all data files of the commit."""

    repository: Literal["chandar-lab/UR100P"] = REPOSITORY
    licence: str = LICENCE
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    parts: list[str] = []
    files: dict[Annotated[str, StringConstraints(pattern=_DATA_FILE)], File] = Field(min_length=1)

    def select(self, parts: Iterable[str]) -> dict[str, File]:
        """Return the files whose paths begin with any of `parts`, all if there is none."""
        parts = list(parts)
        for part in parts:
            if not any(name.startswith(part) for name in self.files):
                raise AmplifyError(
                    f"--part {part}: no data file of {REPOSITORY} begins with that. Its parts are "
                    f"{', '.join(split_names(self.files))}."
                )
        return {name: self.files[name] for name in sorted(self.files) if not parts or name.startswith(tuple(parts))}


def is_data(name: str) -> bool:
    return bool(re.fullmatch(_DATA_FILE, name))


def split_names(files: Iterable[str]) -> list[str]:
    """Return the splits that files belong to: UniProt/train of UniProt/train-00000-of-00038.csv."""
    return sorted({name.removesuffix(".csv").split("-")[0] for name in files})


def read_listing(folder: Path) -> Listing | None:
    """Return what `folder` says of itself; None if it says nothing."""
    try:
        return Listing.model_validate(read_json(folder / FETCHED, f". {_AGAIN}"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise AmplifyError(
            f"{folder / FETCHED} is damaged, or of another dataset: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}. {_AGAIN}"
        ) from None


def write_listing(folder: Path, listing: Listing) -> None:
    with writing(folder / FETCHED):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FETCHED, listing.model_dump(exclude_none=True))


def find_defects(
    folder: Path, files: Mapping[str, File], workers: int, progress: Callable[[int], object] = lambda read: None
) -> dict[str, str]:
    """Return what is wrong, by file; `progress` is told the bytes read."""
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda name: defect(folder / name, files[name], progress), files)
        return {name: what for name, what in zip(files, found) if what}


def defect(path: Path, expected: File, progress: Callable[[int], object] = lambda read: None) -> str | None:
    """Return what is wrong with a file, or None."""
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != expected.bytes:
        return f"has {size:,} bytes, expected {expected.bytes:,}"
    if expected.sha256:
        kind, digest, wanted = "sha256", hashlib.sha256(), expected.sha256
    elif expected.git_sha1:
        kind, digest, wanted = "git SHA-1", hashlib.sha1(b"blob %d\0" % size), expected.git_sha1
    else:
        return None
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress(len(block))
    return None if digest.hexdigest() == wanted else f"has {kind} {digest.hexdigest()}, expected {wanted}"
