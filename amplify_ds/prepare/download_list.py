"""fetched.json, which lists the files of a fetched folder, and the check of the files against it.

fetched.json is written before the first file is fetched. It pins a commit of the dataset, so that everything fetched
later is of the same version, and lists every data file of that commit with its size and the checksum that the hub
gives: sha256 for files in LFS, for small ones the SHA-1 under which git stores them. The check needs no network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, Literal, cast

from huggingface_hub.utils.sha import git_hash, sha_fileobj
from pydantic import BaseModel, Field, StringConstraints, ValidationError
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from amplify_ds import bars
from amplify_ds.data.shard_writer import writing
from amplify_ds.errors import AmplifyError
from amplify_ds.files import write_json
from amplify_ds.structured import read_json

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo

REPOSITORY: Final = "chandar-lab/UR100P"
LICENCE = "CC-BY-4.0"
FETCHED = "fetched.json"
_ADVICE = "Delete it; the next fetch checks the files against the hub and writes it again."
_MAX_NAMES = 5  # of files, in a message
_DATA_FILE = r"^[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)*\.csv$"  # below the folder, nothing hidden


class File(BaseModel):
    """Size and checksum of a file: at most one of the checksums, none if the hub gives none."""

    bytes: int = Field(ge=0)
    sha256: str | None = None
    git_sha1: str | None = None


class Listing(BaseModel):
    """The content of fetched.json. parts: those that were requested; files: all data files of the commit."""

    repository: Literal["chandar-lab/UR100P"] = REPOSITORY
    licence: str = LICENCE
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    parts: list[str] = []
    files: dict[Annotated[str, StringConstraints(pattern=_DATA_FILE)], File] = Field(min_length=1)

    def select(self, parts: Iterable[str]) -> dict[str, File]:
        """Return the files whose paths begin with any of `parts`, all files if `parts` is empty."""
        parts = list(parts)
        for part in parts:
            if not any(name.startswith(part) for name in self.files):
                raise AmplifyError(
                    f"--part {part}: no data file of {REPOSITORY} begins with this. Its parts are "
                    f"{', '.join(split_names(self.files))}."
                )
        return {name: self.files[name] for name in sorted(self.files) if not parts or name.startswith(tuple(parts))}


def listing_of(info: DatasetInfo) -> Listing:
    """Return the data files of a dataset that the hub describes; ValidationError if there are none, or no sizes."""
    files: dict[str, dict[str, int | str | None]] = {}
    for file in info.siblings or []:
        if re.fullmatch(_DATA_FILE, file.rfilename):
            files[file.rfilename] = {"bytes": file.size}
            files[file.rfilename] |= {"sha256": file.lfs.sha256} if file.lfs else {"git_sha1": file.blob_id}
    return Listing.model_validate({"commit": info.sha, "files": files})


def split_names(files: Iterable[str]) -> list[str]:
    """Return the splits that files belong to: UniProt/train of UniProt/train-00000-of-00038.csv."""
    return sorted({name.removesuffix(".csv").split("-")[0] for name in files})


def read_listing(folder: Path) -> Listing | None:
    """Return the content of fetched.json in `folder`, None if there is none; AmplifyError if it is damaged."""
    try:
        return Listing.model_validate(read_json(folder / FETCHED, f". {_ADVICE}"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        raise AmplifyError(
            f"{folder / FETCHED} is damaged, or of another dataset: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}. {_ADVICE}"
        ) from None


def write_listing(folder: Path, listing: Listing) -> None:
    with writing(folder / FETCHED):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FETCHED, listing.model_dump(exclude_none=True))


def find_defects(folder: Path, files: Mapping[str, File], workers: int) -> dict[str, str]:
    """Return what is wrong with each file that is not as listed; checks `workers` files at a time."""
    existing = {name: file for name, file in files.items() if (folder / name).is_file()}
    with (
        bars.bar(total=total_bytes(existing), desc="checking", unit="B", unit_scale=True) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        defects = pool.map(lambda name: _defect(folder / name, files[name], bar.update), files)
        return {name: defect for name, defect in zip(files, defects) if defect}


def _defect(path: Path, expected: File, progress: Callable[[int], object]) -> str | None:
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != expected.bytes:
        return f"has {size:,} bytes, expected {expected.bytes:,}"
    with open(path, "rb") as file:
        stream = cast(BinaryIO, CallbackIOWrapper(progress, file, "read"))
        digest = sha_fileobj(stream).hex() if expected.sha256 else git_hash(stream.read())
    kind, checksum = ("sha256", expected.sha256) if expected.sha256 else ("git SHA-1", expected.git_sha1)
    return None if checksum in (None, digest) else f"has {kind} {digest}, expected {checksum}"


def first_defects(defects: Mapping[str, str]) -> str:
    """Return one line each for the first few files and what is wrong with them."""
    lines = [f"\n  {name} {defect}" for name, defect in list(defects.items())[:_MAX_NAMES]]
    return "".join(lines) + (f"\n  … and {len(defects) - _MAX_NAMES} more" if len(defects) > _MAX_NAMES else "")


def total_bytes(files: Mapping[str, File]) -> int:
    return sum(file.bytes for file in files.values())


def format_bytes(count: int) -> str:
    """Return a number of bytes as text, such as 1.23GB."""
    return tqdm.format_sizeof(count, "B")
