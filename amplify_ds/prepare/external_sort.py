"""External shuffle: a random order of the sequences that does not depend on the order of the input, made in bounded
memory by a merge of sorted runs.

The identity of a sequence is a 128-bit hash of its ids. Its sort key is one half of the hash, scrambled with the seed.
Scatter sorts as many sequences as fit into memory by key and writes them as a run: a table of entries, and their tokens
one after the other. A shard is a range of keys, so it is a slice of every run. Equal sequences have equal keys: they
end up side by side, first in a run, then in the merged slices, where all but one are dropped.

How the sequences are divided into runs makes no difference to a sorted slice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_128_digest

from amplify_ds.data.order import mix
from amplify_ds.data.shard_writer import writing
from amplify_ds.files import sync
from amplify_ds.vocab import BOS, EOS

# "place": the sort key. The name is in the files of an interrupted build, with which a later version may continue.
ENTRY = np.dtype([("place", "<u8"), ("half", "<u8"), ("start", "<u4"), ("length", "<u4"), ("copies", "<u4")])
_HALVES = np.dtype([("key", ">u8"), ("half", ">u8")])
_TOKENS, _ENTRIES = ".tokens", ".entries.npy"


class Slice(NamedTuple):
    """The distinct sequences of a range of keys, in order: sequence i is tokens[starts[i]:][:lengths[i]]."""

    tokens: np.ndarray  # uint8, with <bos> and <eos>
    starts: np.ndarray  # int64 [sequences]
    lengths: np.ndarray  # int64 [sequences], <bos> and <eos> counted
    halves: np.ndarray  # uint64 [sequences]: 64 random bits of each sequence that do not depend on the seed
    duplicates: int  # number of sequences dropped as duplicates
    excluded: int  # number of sequences dropped because they are excluded


def identity(ids: bytes) -> bytes:
    """Return the hash that identifies a sequence, 16 bytes, enough that no two sequences ever read share one."""
    return xxh3_128_digest(ids)


def write_run(stem: Path, sequences: Sequence[bytes], identities: Sequence[bytes], seed: int, distinct: bool) -> None:
    """Write sequences (ids without <bos> and <eos>) as the run `stem`; with `distinct`, equal ones once."""
    halves = np.frombuffer(b"".join(identities), dtype=_HALVES)
    half = halves["half"].astype(np.uint64)
    key = scramble(halves["key"].astype(np.uint64), seed)
    order = np.lexsort((half, key))
    key, half = key[order], half[order]
    first = np.flatnonzero(_differs(key, half) | (not distinct))
    ordered = [sequences[index] for index in order[first].tolist()]

    entries = np.empty(len(ordered), dtype=ENTRY)
    entries["place"], entries["half"] = key[first], half[first]
    entries["copies"] = np.diff(first, append=len(order))
    lengths = np.fromiter(map(len, ordered), dtype=np.int64, count=len(ordered)) + 2
    entries["length"], entries["start"] = lengths, np.cumsum(lengths) - lengths
    begin, between, end = bytes([BOS]), bytes([EOS, BOS]), bytes([EOS])
    tokens, table = (stem.with_name(stem.name + suffix) for suffix in (_TOKENS, _ENTRIES))
    with writing(tokens):
        with open(tokens, "wb") as file:
            file.writelines((begin, between.join(ordered), end))
        sync(tokens)
    with writing(table):
        with open(table, "wb") as file:
            np.save(file, entries)
        sync(table)


def read_slice(runs: Iterable[Path], excluded: Iterable[Path], bounds: tuple[int, int], distinct: bool) -> Slice:
    """Return the sequences of all `runs` with keys in [bounds[0], bounds[1]) that are in none of the `excluded` runs.

    distinct: drop duplicates.
    """
    parts = [(run, *_entries(run, bounds)) for run in runs]
    sizes = [int(stop - start) for _, _, start, stop in parts]
    offsets = np.cumsum([0, *sizes])
    tokens = np.empty(offsets[-1], dtype=np.uint8)
    for (run, _, start, stop), offset in zip(parts, offsets.tolist()):
        with open(run.with_name(run.name + _TOKENS), "rb") as file:
            file.seek(start)
            view = tokens.data[offset : offset + stop - start]
            if file.readinto(view) != len(view):
                raise OSError(f"{run} has become shorter since it was written")
    exclude_tables = [_entries(run, bounds)[0] for run in excluded]
    tables = [np.empty(0, dtype=ENTRY), *(table for _, table, _, _ in parts), *exclude_tables]
    shifts = [offset - start for offset, (_, _, start, _) in zip(offsets.tolist(), parts)]
    shifts = [0, *shifts, *(0 for _ in exclude_tables)]
    starts = np.concatenate([table["start"].astype(np.int64) + shift for table, shift in zip(tables, shifts)])
    in_exclude = np.arange(len(starts)) >= len(starts) - sum(map(len, exclude_tables))
    entries = np.concatenate(tables)
    del parts, tables, exclude_tables

    order = np.lexsort((entries["half"], entries["place"]))
    entries, starts, in_exclude = entries[order], starts[order], in_exclude[order]
    first = _differs(entries["place"], entries["half"])
    sequence = np.cumsum(first) - 1  # the number of each distinct sequence
    dropped = np.zeros(sequence[-1] + 1 if len(sequence) else 0, dtype=bool)
    dropped[sequence[in_exclude]] = True
    dropped = dropped[sequence]
    kept = ~dropped & (first | (not distinct))
    copies = entries["copies"].astype(np.int64)
    return Slice(
        tokens,
        starts[kept],
        entries["length"][kept].astype(np.int64),
        entries["half"][kept],
        int(copies[~dropped].sum() - kept.sum()),
        int(copies[dropped & ~in_exclude].sum()),
    )


def bounds_of(number: int, count: int) -> tuple[int, int]:
    """Return the range of keys of shard `number` of `count`: the first, and the one after the last."""
    return -(-(number << 64) // count), -(-((number + 1) << 64) // count)


def scramble(bits: np.ndarray, seed: int) -> np.ndarray:
    """Return uint64 that are as random as `bits`, by a one-to-one mapping that is unrelated for each seed."""
    return mix(bits ^ mix(np.array([seed], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)))


def _entries(run: Path, bounds: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Return the entries of a run in a range of keys, and where their tokens begin and end in its file."""
    entries = np.load(run.with_name(run.name + _ENTRIES), mmap_mode="r")
    keys = entries["place"]
    first, last = (bisect_left(keys, bound, key=int) for bound in bounds)
    selected = np.array(entries[first:last])
    if not len(selected):
        return selected, 0, 0
    return selected, int(selected["start"][0]), int(selected["start"][-1]) + int(selected["length"][-1])


def _differs(key: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Return a mask that is True where a sorted entry differs from the one before."""
    differs = np.ones(len(key), dtype=bool)
    differs[1:] = (key[1:] != key[:-1]) | (half[1:] != half[:-1])
    return differs
