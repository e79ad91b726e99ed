"""Packed rows on disk: the format, opening a directory of shards, reading a row.

    DIR/manifest.json                settings, inputs and counts of the shards, and the checksum of every file
        shard-00000.tokens.npy       uint8 [rows, row_tokens]: windows one after the other, then <pad> (0)
        shard-00000.lengths.npy      uint16 [segments]: the length of every window, in row order
        shard-00000.row_starts.npy   int64 [rows + 1]: row i has the windows lengths[row_starts[i]:row_starts[i + 1]]
        shard-00001.tokens.npy …

Each file is an ordinary array: `numpy.load("DIR/shard-00000.tokens.npy")`. Rows are numbered across all shards.
Opening reads the manifest and checks the size of every file; the files of a shard are opened when one of its rows is
first read, so an open `Shards` can be pickled or inherited by worker processes at no cost. Rows are read with
positional reads, not through a memory map: memory does not grow with what has been read, and a file that is truncated
meanwhile raises an error instead of killing the process. `shard_writer` writes this format, `verify` checks every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.config import with_config
from typing_extensions import TypedDict

from amplify_ds.errors import AmplifyError
from amplify_ds.files import content_digest
from amplify_ds.structured import read_json
from amplify_ds.vocab import PAD, TOKENS, VOCABULARY_SHA256

FORMAT = "amplify_ds.shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DIGEST = "manifest_sha256"  # the last entry of the manifest: the checksum of all others
_MAX_OPEN = 200  # open shards; each takes three file descriptors, and the usual limit is 1,024
REBUILD = "Delete the directory and build it again with data_prep/build_shards.py."


class _File(TypedDict):
    bytes: NonNegativeInt
    sha256: str


class _Shard(TypedDict):
    rows: PositiveInt
    segments: PositiveInt
    files: Annotated[dict[str, _File], Field(min_length=3, max_length=3)]  # tokens, lengths, row_starts


class _Counts(TypedDict):
    rows: PositiveInt
    tokens: PositiveInt  # without <pad>


@with_config(ConfigDict(strict=True))
class _Manifest(TypedDict):
    """The entries of manifest.json that reading and training need; prepare/manifest.py has the others."""

    max_length: PositiveInt
    row_tokens: PositiveInt
    counts: _Counts
    packing_efficiency: float
    token_counts: Annotated[list[NonNegativeInt], Field(min_length=len(TOKENS), max_length=len(TOKENS))]
    shards: Annotated[list[_Shard], Field(min_length=1)]


_manifest = TypeAdapter(_Manifest)


class Arrays(NamedTuple):
    """The three arrays of one shard, as described at the top of this module."""

    tokens: np.ndarray
    lengths: np.ndarray
    row_starts: np.ndarray


class Shards:
    """A directory of shards, opened for reading.

    path: Path. manifest: dict. num_rows, row_tokens, max_length: int. fingerprint: sha256 of everything that determines
    the rows, including the checksum of every file: two directories with equal fingerprints contain the same rows.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the directory `path`. Raises AmplifyError if it is incomplete or has another format or vocabulary."""
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.row_tokens: int = self.manifest["row_tokens"]
        self.max_length: int = self.manifest["max_length"]
        content = [self.manifest[key] for key in ("vocabulary_sha256", "max_length", "row_tokens", "shards")]
        self.fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._first_rows = list(accumulate((shard["rows"] for shard in self.manifest["shards"]), initial=0))
        self.num_rows = self._first_rows[-1]
        self._open: dict[int, _Files] = {}
        self._offsets: dict[int, list[int]] = {}  # of the arrays of a shard in their files, once they were read
        for name, expected in self.files().items():
            _check_size(self.path / name, expected["bytes"])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of row `index`: tokens uint8 [row_tokens] and the lengths of its windows, uint16 [windows].

        Raises AmplifyError if the format does not allow the content of the row.
        """
        if not 0 <= index < self.num_rows:
            raise IndexError(f"there is no row {index} in {self.path}, which has rows 0 to {self.num_rows - 1}")
        shard = bisect_right(self._first_rows, index) - 1
        row = index - self._first_rows[shard]
        tokens, lengths = self._read(shard, row)
        # Training does not verify checksums, but this finds any damage that could crash a kernel or mix proteins.
        used = int(lengths.sum())
        valid = len(lengths) and lengths.min() and lengths.max() <= self.max_length and used <= self.row_tokens
        if not valid or tokens.max() >= len(TOKENS) or tokens[:used].min() == PAD or tokens[used:].any():
            raise AmplifyError(
                f"row {row} of shard {shard} of {self.path} is invalid: the files were altered. "
                f"inspect_shards.py --verify names the file. {REBUILD}"
            )
        return tokens, lengths

    def _read(self, shard: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and lengths of a row; the lengths are empty if the files are too short."""
        files = self._files(shard)
        tokens, bounds = np.empty(self.row_tokens, dtype="u1"), np.empty(2, dtype="<i8")
        complete = files.read(0, row * tokens.nbytes, tokens) and files.read(2, row * bounds.itemsize, bounds)
        start, stop = bounds.tolist() if complete else (0, 0)
        lengths = np.empty(stop - start if 0 < stop - start <= self.row_tokens else 0, dtype="<u2")
        if not (0 <= start and files.read(1, start * lengths.itemsize, lengths)):
            lengths = lengths[:0]
        return tokens, lengths

    def window_starts(self, rows: int) -> np.ndarray:
        """Return the index of the first window of each of the first `rows` rows and of the next one: [rows + 1]."""
        shards = range(bisect_right(self._first_rows, rows - 1)) if rows else ()
        counts = [np.diff(self.arrays(shard).row_starts) for shard in shards]
        return np.cumsum(np.concatenate([[0], *counts]))[: rows + 1]

    def files(self) -> dict[str, dict]:
        """Return {file name: {"bytes": int, "sha256": str}} of every array file, in order."""
        return {name: entry for shard in self.manifest["shards"] for name, entry in shard["files"].items()}

    def arrays(self, shard: int) -> Arrays:
        """Return memory maps of the arrays of a shard, for reading all of it."""
        parts = zip(self.manifest["shards"][shard]["files"], self._read_offsets(shard), self._expected(shard))
        return Arrays(
            *(np.memmap(self.path / name, dtype, "r", offset, shape) for name, offset, (dtype, shape) in parts)
        )

    def _files(self, shard: int) -> _Files:
        """Return the open files of a shard, opening them if necessary."""
        if shard not in self._open:
            if shard not in self._offsets:
                self._offsets[shard] = self._read_offsets(shard)
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]  # rows are read in random order, so closing any will do
            names = self.manifest["shards"][shard]["files"]
            self._open[shard] = _Files([self.path / name for name in names], self._offsets[shard])
        return self._open[shard]

    def _expected(self, shard: int) -> list[tuple[np.dtype, tuple[int, ...]]]:
        """Return the types and shapes of a shard's arrays according to the manifest."""
        rows, segments = self.manifest["shards"][shard]["rows"], self.manifest["shards"][shard]["segments"]
        shapes = [("u1", (rows, self.row_tokens)), ("<u2", (segments,)), ("<i8", (rows + 1,))]
        return [(np.dtype(kind), shape) for kind, shape in shapes]

    def _read_offsets(self, shard: int) -> list[int]:
        """Return the offsets of a shard's arrays in their files. AmplifyError if they differ from the manifest."""
        headers = [_read_header(self.path / name) for name in self.manifest["shards"][shard]["files"]]
        actual, expected = [(dtype, shape) for dtype, shape, _ in headers], self._expected(shard)
        if actual != expected:
            raise AmplifyError(
                f"the arrays of shard {shard} of {self.path} have types and shapes {actual}, but {MANIFEST} says "
                f"{expected}. {REBUILD}"
            )
        return [offset for _, _, offset in headers]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}, "_offsets": {}}


class _Files:
    """The open files of a shard. Reads are positional, so processes that inherit them do not interfere."""

    def __init__(self, paths: list[Path], offsets: list[int]) -> None:
        self._offsets, self._descriptors = offsets, []
        for path in paths:
            self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read(self, number: int, offset: int, array: np.ndarray) -> bool:
        """Fill `array` from byte `offset` of array `number`; return False if the file is too short."""
        return os.preadv(self._descriptors[number], [array.data], self._offsets[number] + offset) == array.nbytes

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def _read_manifest(path: Path) -> dict:
    if not path.is_dir():
        raise AmplifyError(
            f"there is no directory {path}. Build the shards with data_prep/build_shards.py --output {path}."
        )
    file = path / MANIFEST
    try:
        manifest = read_json(file, f". {REBUILD}")
    except FileNotFoundError:
        raise AmplifyError(
            f"{path} contains no {MANIFEST}, so it is not a directory of shards. Give one that "
            "data_prep/build_shards.py wrote."
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise AmplifyError(
            f'{file} does not have the format "{FORMAT}". Give a directory that data_prep/build_shards.py wrote.'
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise AmplifyError(
            f"{file} has format version {manifest.get('format_version')}, but this program reads version "
            f"{FORMAT_VERSION}. {REBUILD}"
        )
    if manifest.get("vocabulary_sha256") != VOCABULARY_SHA256:
        raise AmplifyError(
            f"{file} was made with another vocabulary (sha256 {manifest.get('vocabulary_sha256')}, expected "
            f"{VOCABULARY_SHA256}): its ids mean other tokens. {REBUILD}"
        )
    if manifest.get(DIGEST) != manifest_digest(manifest):
        raise AmplifyError(f"{file} was altered: it does not match the checksum in it. {REBUILD}")
    try:
        _manifest.validate_python(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        raise AmplifyError(
            f"{file} is not a valid manifest: {'.'.join(map(str, first['loc']))}: {first['msg']}. {REBUILD}"
        ) from None
    return manifest


def manifest_digest(manifest: dict) -> str:
    """Return the sha256 of a manifest's content without its entry `DIGEST`."""
    return content_digest(manifest, DIGEST)


def _check_size(file: Path, expected: int) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise AmplifyError(f"{file} is missing, but {MANIFEST} lists it. {REBUILD}") from None
    if size != expected:
        raise AmplifyError(
            f"{file} has {size:,} bytes, {MANIFEST} says {expected:,}: it was truncated or altered. {REBUILD}"
        )


def _read_header(file: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """Return type and shape of the array in a .npy file, and the offset of its data."""
    try:
        with open(file, "rb") as opened:
            np.lib.format.read_magic(opened)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(opened)
            if fortran_order:
                raise ValueError("it is stored in Fortran order, expected C order")
            return dtype, shape, opened.tell()
    except ValueError as error:
        raise AmplifyError(f"{file} is not a readable .npy file ({error}). {REBUILD}") from None
