"""Packed rows on disk: the format, opening a directory of shards, reading a row.

    DIR/manifest.json                what the shards are, where they come from, and the checksum of every file
        shard-00000.tokens.npy       uint8 [rows, row_tokens]: windows one after the other, then <pad> (0)
        shard-00000.lengths.npy      uint16 [segments]: the length of every window, in row order
        shard-00000.row_starts.npy   int64 [rows + 1]: row i has the windows lengths[row_starts[i]:row_starts[i + 1]]
        shard-00001.tokens.npy …

Each file is an ordinary array: `numpy.load("DIR/shard-00000.tokens.npy")`. Rows are numbered through all shards.
Opening reads the manifest and looks at the size of every file, no more; a shard is memory-mapped when one of its rows
is first read, so an open `Shards` can be pickled or inherited by worker processes at no cost. `shard_writer` writes
this format, `verify` checks every byte of it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import PAD, TOKENS, VOCABULARY_SHA256

FORMAT = "amplify_ds.shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DIGEST = "manifest_sha256"  # the manifest's last entry: the checksum of all others
_MAX_OPEN = 200  # shards mapped at a time: three file descriptors each, of the 1,024 a process commonly has
REBUILD = "Delete the directory and build it again with data_prep/build_shards.py."


class Arrays(NamedTuple):
    """The three arrays of one shard, as in the module's docstring."""

    tokens: np.ndarray
    lengths: np.ndarray
    row_starts: np.ndarray


class Shards:
    """A directory of shards, opened for reading.

    path: Path. manifest: dict. num_rows, row_tokens, max_length: int. fingerprint: sha256 of what the rows depend on,
    the checksum of every file among it: two directories with equal fingerprints hold the same rows.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the directory at `path`; AmplifyError if it is not complete, or not of this format and vocabulary."""
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.row_tokens: int = self.manifest["row_tokens"]
        self.max_length: int = self.manifest["max_length"]
        content = [self.manifest[key] for key in ("vocabulary_sha256", "max_length", "row_tokens", "shards")]
        self.fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._first_rows = list(accumulate((shard["rows"] for shard in self.manifest["shards"]), initial=0))
        self.num_rows = self._first_rows[-1]
        self._open: dict[int, Arrays] = {}
        for name, expected in self.files().items():
            _check_size(self.path / name, expected["bytes"])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of row `index`: tokens uint8 [row_tokens] and the lengths of its windows, uint16 [windows].

        AmplifyError if the row is not one that the format allows.
        """
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.path}, which has the rows 0 to {self.num_rows - 1}")
        shard = bisect_right(self._first_rows, index) - 1
        arrays = self.arrays(shard)
        row = index - self._first_rows[shard]
        start, stop = arrays.row_starts[row : row + 2]
        tokens, lengths = np.array(arrays.tokens[row]), np.array(arrays.lengths[start:stop])
        # Training does not read checksums; what would break a kernel or mix proteins up is seen here all the same.
        used = int(lengths.sum())
        sound = len(lengths) and lengths.min() and lengths.max() <= self.max_length and used <= self.row_tokens
        if not sound or tokens.max() >= len(TOKENS) or tokens[:used].min() == PAD or tokens[used:].any():
            raise AmplifyError(
                f"row {row} of shard {shard} of {self.path} is not what the format says: the files were altered. "
                f"inspect_shards.py --verify names the file. {REBUILD}"
            )
        return tokens, lengths

    def window_starts(self, rows: int) -> np.ndarray:
        """Return the number of the first window of each of the first `rows` rows, and of what follows: [rows + 1]."""
        shards = range(bisect_right(self._first_rows, rows - 1)) if rows else ()
        counts = [np.diff(self.arrays(shard).row_starts) for shard in shards]
        return np.cumsum(np.concatenate([[0], *counts]))[: rows + 1]

    def files(self) -> dict[str, dict]:
        """Return {file name: {"bytes": int, "sha256": str}} of every array file, in order."""
        return {name: entry for shard in self.manifest["shards"] for name, entry in shard["files"].items()}

    def arrays(self, shard: int) -> Arrays:
        """Return the memory-mapped arrays of a shard, opening it if need be."""
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]  # rows are read in random order: the oldest is as good as any
            entry = self.manifest["shards"][shard]
            arrays = Arrays(*(_map(self.path / name) for name in entry["files"]))
            found = [(array.dtype, array.shape) for array in arrays]
            rows, segments = entry["rows"], entry["segments"]
            if found != [("u1", (rows, self.row_tokens)), ("u2", (segments,)), ("i8", (rows + 1,))]:
                raise AmplifyError(
                    f"the arrays of shard {shard} of {self.path} have types and shapes {found}, not "
                    f"those of {rows} rows and {segments} segments as {MANIFEST} says. {REBUILD}"
                )
            self._open[shard] = arrays
        return self._open[shard]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


def _read_manifest(path: Path) -> dict:
    if not path.is_dir():
        raise AmplifyError(
            f"there is no directory {path}. Build the shards with data_prep/build_shards.py --output {path}."
        )
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise AmplifyError(
            f"{path} holds no {MANIFEST}, so it is no directory of shards. Give one that "
            "data_prep/build_shards.py wrote."
        ) from None
    except ValueError as error:
        raise AmplifyError(f"{file} is not valid JSON ({error}). {REBUILD}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise AmplifyError(
            f'{file} is not of the format "{FORMAT}". Give a directory that data_prep/build_shards.py wrote.'
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise AmplifyError(
            f"{file} has format version {manifest.get('format_version')}, this program reads version "
            f"{FORMAT_VERSION}. {REBUILD}"
        )
    if manifest.get("vocabulary_sha256") != VOCABULARY_SHA256:
        raise AmplifyError(
            f"{file} is of another vocabulary (sha256 {manifest.get('vocabulary_sha256')}, expected "
            f"{VOCABULARY_SHA256}): its ids mean other tokens. {REBUILD}"
        )
    if manifest.get(DIGEST) != manifest_digest(manifest):
        raise AmplifyError(f"{file} was altered: it does not match the checksum that it carries. {REBUILD}")
    return manifest


def manifest_digest(manifest: dict) -> str:
    """Return the sha256 of a manifest's content, its entry `DIGEST` left out."""
    content = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_size(file: Path, expected: int) -> None:
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        raise AmplifyError(f"{file} is missing, but {MANIFEST} lists it. {REBUILD}") from None
    if found != expected:
        raise AmplifyError(
            f"{file} has {found:,} bytes, {MANIFEST} says {expected:,}: it was truncated or altered. {REBUILD}"
        )


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise AmplifyError(f"{file} is not a readable .npy file ({error}). {REBUILD}") from None
