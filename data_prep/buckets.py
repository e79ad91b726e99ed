"""The external shuffle: an order of the sequences that is random, the same for every order of the input, and found in
bounded memory.

The key of a sequence is a hash of its ids and the seed. On the way in, a sequence is appended to one of the bucket
files, chosen by the leading bits of its key; once everything is in, a bucket at a time is loaded and sorted by key.
Equal sequences have equal keys, so they end up side by side, where all but one are dropped. Buckets do not depend on
one another: nothing in the result would change if many processes filled or emptied them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.data.shard_writer import writing
from amplify_ds.vocab import BOS, EOS

_KEY_BYTES = 16  # 2^128 keys: two different sequences of all that were ever read do not share one
_BUFFER = 2**26  # bytes that all buckets together keep in memory before they are appended to the files
_BUFFER_OF_ONE = 2**22  # bytes beyond which one bucket's share of it saves no more time
_ENTRY = np.dtype([("key", ">u8", 2), ("length", "<u4")])


class Bucket(NamedTuple):
    """The different sequences of a bucket in random order: sequence i is tokens[starts[i] : starts[i] + lengths[i]]."""

    tokens: bytes  # with <bos> and <eos>
    starts: np.ndarray  # int64 [sequences]
    lengths: np.ndarray  # int64 [sequences], <bos> and <eos> counted
    duplicates: int  # how many equal sequences were dropped


class Buckets:
    """Bucket files in a directory: `add` sequences, `flush`, then `load` each bucket."""

    def __init__(self, directory: Path, count: int, seed: int) -> None:
        self.count = count
        self._directory = directory
        self._salt = seed.to_bytes(16, "little")
        self._sequences: list[list[bytes]] = [[] for _ in range(count)]
        self._keys: list[list[bytes]] = [[] for _ in range(count)]
        self._buffered = [0] * count
        self._buffer_size = min(_BUFFER // count, _BUFFER_OF_ONE)

    def key(self, ids: bytes) -> bytes:
        """Return the key of a sequence, 16 bytes, evenly distributed."""
        return hashlib.blake2b(ids, digest_size=_KEY_BYTES, salt=self._salt).digest()

    def add(self, ids: bytes, key: bytes) -> None:
        """Put a sequence (its ids without <bos> and <eos>, one byte each) into its bucket."""
        bucket = int.from_bytes(key[:4], "big") * self.count >> 32
        self._sequences[bucket].append(ids)
        self._keys[bucket].append(key)
        self._buffered[bucket] += len(ids)
        if self._buffered[bucket] > self._buffer_size:
            self._append(bucket)

    def flush(self) -> None:
        """Append what is still in memory to the bucket files."""
        for bucket in range(self.count):
            if self._sequences[bucket]:
                self._append(bucket)

    def _append(self, bucket: int) -> None:
        sequences, keys = self._sequences[bucket], self._keys[bucket]
        entries = np.empty(len(keys), dtype=_ENTRY)
        entries["key"] = np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2)
        entries["length"] = np.fromiter(map(len, sequences), dtype=np.int64) + 2
        begin, between, end = bytes([BOS]), bytes([EOS, BOS]), bytes([EOS])
        tokens_path, entries_path = self._paths(bucket)
        with writing(tokens_path), open(tokens_path, "ab") as file:
            file.writelines((begin, between.join(sequences), end))
        with writing(entries_path), open(entries_path, "ab") as file:
            file.write(entries.tobytes())
        sequences.clear()
        keys.clear()
        self._buffered[bucket] = 0

    def load(self, bucket: int) -> Bucket:
        """Read a bucket, sort it by key, drop duplicates, and delete its files."""
        tokens_path, entries_path = self._paths(bucket)
        if not tokens_path.exists():
            return Bucket(b"", np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 0)
        tokens = tokens_path.read_bytes()
        entries = np.fromfile(entries_path, dtype=_ENTRY)
        tokens_path.unlink()
        entries_path.unlink()

        lengths = entries["length"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        high, low = entries["key"].astype(np.uint64).T
        order = np.lexsort((low, high))
        high, low = high[order], low[order]
        repeated = np.zeros(len(order), dtype=bool)
        repeated[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
        kept = order[~repeated]
        return Bucket(tokens, starts[kept], lengths[kept], int(repeated.sum()))

    def _paths(self, bucket: int) -> tuple[Path, Path]:
        return self._directory / f"bucket-{bucket:05d}.tokens", self._directory / f"bucket-{bucket:05d}.entries"
