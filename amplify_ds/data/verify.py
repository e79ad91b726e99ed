"""Verify a directory of shards: every file against its checksum, its content against the format and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from amplify_ds.data.shards import MANIFEST, REBUILD, Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.files import sha256
from amplify_ds.processes import process_pool
from amplify_ds.vocab import PAD, TOKENS


def verify(path: str | Path, progress: Callable[[int], object] = lambda read: None, workers: int = 1) -> int:
    """Check the shards at `path` in `workers` processes; return the number of files.

    Raises AmplifyError that names the first invalid file. `progress` is called with the size in bytes of each shard
    that is valid.
    """
    shards = Shards(path)
    check, numbers = partial(_verify_shard, shards), range(len(shards.manifest["shards"]))
    token_counts = np.zeros(len(TOKENS), dtype=np.int64)
    with ExitStack() as stack:
        map_shards: Callable[..., Iterable[np.ndarray]] = map
        if workers > 1:
            map_shards = stack.enter_context(process_pool(workers)).map
        for number, shard_counts in zip(numbers, map_shards(check, numbers)):
            token_counts += shard_counts
            progress(sum(file["bytes"] for file in shards.manifest["shards"][number]["files"].values()))
    counts = shards.manifest["counts"]
    if token_counts.tolist() != shards.manifest["token_counts"] or counts["rows"] != shards.num_rows:
        raise AmplifyError(
            f"the counts of tokens or rows in {shards.path / MANIFEST} differ from those of the shards. {REBUILD}"
        )
    return len(shards.files())


def _verify_shard(shards: Shards, number: int) -> np.ndarray:
    """Check the files of a shard, then their content; return how often each token occurs, int64 [27]."""
    for name, expected in shards.manifest["shards"][number]["files"].items():
        digest = sha256(shards.path / name)
        if digest != expected["sha256"]:
            raise AmplifyError(
                f"{shards.path / name} was altered: its sha256 is {digest}, {MANIFEST} says "
                f"{expected['sha256']}. {REBUILD}"
            )
    return _check_contents(shards, number)


def _check_contents(shards: Shards, shard: int) -> np.ndarray:
    """Check the rows of a shard against the format; return how often each token occurs, int64 [27]."""
    tokens, lengths, row_starts = shards.arrays(shard)
    tokens_file, lengths_file, starts_file = (shards.path / name for name in shards.manifest["shards"][shard]["files"])
    if row_starts[0] != 0 or row_starts[-1] != len(lengths) or (np.diff(row_starts) < 1).any():
        raise AmplifyError(f"{starts_file} does not divide {len(lengths)} windows into rows. {REBUILD}")
    if lengths.min() < 1 or lengths.max() > shards.max_length:
        raise AmplifyError(
            f"{lengths_file} has windows of {lengths.min()} to {lengths.max()} tokens, expected 1 to "
            f"{shards.max_length}. {REBUILD}"
        )
    counts = np.zeros(256, dtype=np.int64)
    column = np.arange(shards.row_tokens)
    for row, used in enumerate(np.add.reduceat(lengths, row_starts[:-1], dtype=np.int64)):
        if used > shards.row_tokens or not np.array_equal(tokens[row] != PAD, column < used):
            raise AmplifyError(
                f"{tokens_file}, row {row}: its windows have {used} tokens in total, but <pad> does not begin there. "
                f"{REBUILD}"
            )
        counts += np.bincount(tokens[row], minlength=256)
    counts[PAD] = 0
    if counts[len(TOKENS) :].any():
        raise AmplifyError(f"{tokens_file} contains ids that are not in the vocabulary. {REBUILD}")
    return counts[: len(TOKENS)]
