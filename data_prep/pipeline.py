"""FASTA files -> the files of a shard directory and its manifest: scatter, then pack bucket by bucket.

Scatter: every record is cleaned, or dropped and counted by reason (`clean.py`), and goes to the bucket of its key
(`buckets.py`). Pack: a bucket's sequences, shuffled and without duplicates, are cut into windows; the windows are
shuffled once more, so that those of one long protein do not end up side by side, and packed into rows
(`amplify_ds.data.packing`); the rows of a bucket are a shard. Memory holds one bucket. The result depends on the
sequences, the settings and the number of buckets, never on the order in which the sequences come.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from buckets import Bucket, Buckets
from clean import clean
from fasta import FastaFile
from tqdm import tqdm

from amplify_ds import __version__
from amplify_ds.data.order import permute
from amplify_ds.data.packing import pack, tile
from amplify_ds.data.shard_writer import write_shard
from amplify_ds.data.shards import FORMAT, FORMAT_VERSION
from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import PAD, RESIDUES, TOKENS, VOCABULARY_SHA256, encode

BUCKET_BYTES = 256_000_000  # tokens in a bucket, about
_PIECE = 2**20  # bytes of rows given to the disk at a time


def build(
    directory: Path,
    inputs: Sequence[FastaFile],
    exclude: Sequence[FastaFile],
    settings: dict,
    bucket_bytes: int = BUCKET_BYTES,
) -> dict:
    """Write the shards of `inputs`, without the sequences of `exclude`, into `directory`; return the manifest.

    settings: max_length and row_tokens (tokens), windows ("tile"), seed. AmplifyError if no sequence is usable.
    """
    text_bytes = sum(file.estimated_text_bytes for file in inputs)
    buckets = Buckets(directory, -(-text_bytes // bucket_bytes), settings["seed"])
    mended, rejected = Counter(), Counter()
    records = _scatter(inputs, exclude, buckets, mended, rejected)

    token_counts = np.zeros(len(TOKENS), dtype=np.int64)
    lengths: Counter[int] = Counter()
    shards = []
    for number in tqdm(range(buckets.count), desc="packing", unit="bucket", disable=None):
        bucket = buckets.load(number)
        rejected["duplicates"] += bucket.duplicates
        lengths.update((bucket.lengths - 2).tolist())
        if len(bucket.lengths):
            shards.append(_pack(directory, len(shards), bucket, (settings["seed"], number), settings, token_counts))

    if not shards:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in _by_reason(rejected).items())
        raise AmplifyError(
            f"no usable sequence among {records:,} records: {reasons} (why: data_prep/clean.py). "
            "Expected proteins in one-letter code."
        )
    rows, tokens = sum(shard["rows"] for shard in shards), int(token_counts.sum())
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "amplify_ds_version": __version__,
        "vocabulary_sha256": VOCABULARY_SHA256,
        **settings,
        "inputs": identities(inputs),
        "exclude": identities(exclude),
        "counts": {
            "records": records,
            "sequences": lengths.total(),
            "residues": int(token_counts[encode(RESIDUES)].sum()),
            "windows": sum(shard["segments"] for shard in shards),
            "rows": rows,
            "tokens": tokens,
            "mended": _by_reason(mended),
            "rejected": _by_reason(rejected),
        },
        "packing_efficiency": tokens / (rows * settings["row_tokens"]),
        "token_counts": token_counts.tolist(),
        "length_histogram": [[length, lengths[length]] for length in sorted(lengths)],
        "shards": shards,
    }


def _scatter(
    inputs: Sequence[FastaFile],
    exclude: Sequence[FastaFile],
    buckets: Buckets,
    mended: Counter[str],
    rejected: Counter[str],
) -> int:
    """Put every usable sequence of `inputs` into its bucket; return the number of records read."""
    excluded = set()
    for batch in _batches(exclude, "reading what to exclude"):
        cleaned = (clean(text, Counter(), Counter()) for text in batch)
        excluded.update(buckets.key(ids) for ids in cleaned if ids is not None)
    records = 0
    for batch in _batches(inputs, "reading"):
        records += len(batch)
        for text in batch:
            ids = clean(text, mended, rejected)
            if ids is None:
                continue
            key = buckets.key(ids)
            if key in excluded:
                rejected["excluded"] += 1
            else:
                buckets.add(ids, key)
    buckets.flush()
    return records


def _pack(
    directory: Path, number: int, bucket: Bucket, key: tuple[int, int], settings: dict, token_counts: np.ndarray
) -> dict:
    """Write a bucket as shard `number`; add its tokens to `token_counts` [27]; return its entry in the manifest."""
    row_tokens = settings["row_tokens"]
    sequence, start, stop = tile(bucket.lengths, settings["max_length"])
    arrival = permute(np.arange(len(sequence)), len(sequence), key)
    first = (bucket.starts[sequence] + start)[arrival]
    length = (stop - start)[arrival]
    rows = list(pack(length.tolist(), row_tokens))
    row_starts = np.cumsum([0, *map(len, rows)])
    placed = np.fromiter(chain.from_iterable(rows), dtype=np.int64)

    def pieces() -> Iterator[bytes]:
        tokens = memoryview(bucket.tokens)
        begin, end = first.tolist(), (first + length).tolist()
        pad = bytes([PAD])
        step = max(1, _PIECE // row_tokens)
        for index in range(0, len(rows), step):
            piece = b"".join(
                [
                    b"".join([tokens[begin[window] : end[window]] for window in row]).ljust(row_tokens, pad)
                    for row in rows[index : index + step]
                ]
            )
            token_counts[:] += np.bincount(np.frombuffer(piece, dtype=np.uint8), minlength=len(TOKENS))
            token_counts[PAD] = 0
            yield piece

    return write_shard(directory, number, row_tokens, pieces(), length[placed], row_starts)


def _batches(files: Sequence[FastaFile], what: str) -> Iterator[list[bytes]]:
    """Yield the batches of all files under a progress bar that follows the bytes on disk (none without a terminal)."""
    residues, began = 0, time.perf_counter()
    size = sum(file.bytes for file in files)
    with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None if files else True) as bar:
        for file in files:
            for batch in file.batches(bar.update):
                residues += sum(map(len, batch))
                rate = residues / (time.perf_counter() - began)
                bar.set_postfix_str(f"{rate / 1e6:.1f} million residues/s", refresh=False)
                yield batch


def _by_reason(counts: Counter[str]) -> dict[str, int]:
    return {reason: counts[reason] for reason in sorted(counts) if counts[reason]}


def identities(files: Sequence[FastaFile]) -> list[dict]:
    """Return what the manifest says of files that were read: their names, sizes in bytes and sha256."""
    found = ({"name": file.path.name, "bytes": file.bytes, "sha256": file.sha256} for file in files)
    return sorted(found, key=lambda identity: (identity["name"], identity["sha256"]))
