"""The external shuffle: an order of the sequences that is random, the same for every order of the input, and found in
bounded memory, by a merge of sorted runs.

The identity of a sequence is a hash of its ids, 128 bits. Its place in the order is one half of the hash, scrambled
with the seed. Scatter sorts what fits into memory by place and writes it as a run: a table of entries and their tokens
one after the other. A shard is a range of places, so it is a slice of every run. Equal sequences have equal places:
they end up side by side, first in a run, then among the slices, where all but one are dropped.

Where the runs begin and end, who wrote them and how many there are makes no difference to a slice once it is sorted.
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

ENTRY = np.dtype([("place", "<u8"), ("half", "<u8"), ("start", "<u4"), ("length", "<u4"), ("copies", "<u4")])
_HALVES = np.dtype([("place", ">u8"), ("half", ">u8")])
_TOKENS, _ENTRIES = ".tokens", ".entries.npy"


class Slice(NamedTuple):
    """The different sequences of a range of places, in order: sequence i is tokens[starts[i]:][:lengths[i]]."""

    tokens: np.ndarray  # uint8, with <bos> and <eos>
    starts: np.ndarray  # int64 [sequences]
    lengths: np.ndarray  # int64 [sequences], <bos> and <eos> counted
    halves: np.ndarray  # uint64 [sequences]: 64 random bits of each sequence that do not depend on the seed
    duplicates: int  # how many equal sequences were dropped
    excluded: int  # how many were dropped because the excluded ones hold them


def identity(ids: bytes) -> bytes:
    """Return the hash by which a sequence is known, 16 bytes: no two different sequences ever read share one."""
    return xxh3_128_digest(ids)


def write_run(stem: Path, sequences: Sequence[bytes], identities: Sequence[bytes], seed: int, distinct: bool) -> None:
    """Write sequences (ids without <bos> and <eos>) as the run `stem`; with `distinct`, equal ones once."""
    found = np.frombuffer(b"".join(identities), dtype=_HALVES)
    half = found["half"].astype(np.uint64)
    place = scramble(found["place"].astype(np.uint64), seed)
    order = np.lexsort((half, place))
    place, half = place[order], half[order]
    first = np.flatnonzero(_differs(place, half) | (not distinct))
    ordered = [sequences[index] for index in order[first].tolist()]

    entries = np.empty(len(ordered), dtype=ENTRY)
    entries["place"], entries["half"] = place[first], half[first]
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
    """Read the sequences of all `runs` with places in [bounds[0], bounds[1]) and in none of the `excluded` runs."""
    parts = [(run, *_entries(run, bounds)) for run in runs]
    sizes = [int(stop - start) for _, _, start, stop in parts]
    offsets = np.cumsum([0, *sizes])
    tokens = np.empty(offsets[-1], dtype=np.uint8)
    for (run, _, start, stop), offset in zip(parts, offsets.tolist()):
        with open(run.with_name(run.name + _TOKENS), "rb") as file:
            file.seek(start)
            view = tokens.data[offset : offset + stop - start]
            if file.readinto(view) != len(view):
                raise OSError(f"{run} is shorter than it was")
    others = [_entries(run, bounds)[0] for run in excluded]
    tables = [np.empty(0, dtype=ENTRY), *(table for _, table, _, _ in parts), *others]
    shifts = [0, *(offset - start for offset, (_, _, start, _) in zip(offsets.tolist(), parts)), *(0 for _ in others)]
    starts = np.concatenate([table["start"].astype(np.int64) + shift for table, shift in zip(tables, shifts)])
    barred = np.arange(len(starts)) >= len(starts) - sum(map(len, others))
    entries = np.concatenate(tables)
    del parts, tables, others

    order = np.lexsort((entries["half"], entries["place"]))
    entries, starts, barred = entries[order], starts[order], barred[order]
    first = _differs(entries["place"], entries["half"])
    sequence = np.cumsum(first) - 1  # a number for each different sequence
    out = np.zeros(sequence[-1] + 1 if len(sequence) else 0, dtype=bool)
    out[sequence[barred]] = True
    out = out[sequence]
    kept = ~out & (first | (not distinct))
    copies = entries["copies"].astype(np.int64)
    return Slice(
        tokens,
        starts[kept],
        entries["length"][kept].astype(np.int64),
        entries["half"][kept],
        int(copies[~out].sum() - kept.sum()),
        int(copies[out & ~barred].sum()),
    )


def bounds_of(number: int, count: int) -> tuple[int, int]:
    """Return the places of shard `number` of `count`."""
    return -(-(number << 64) // count), -(-((number + 1) << 64) // count)


def scramble(bits: np.ndarray, seed: int) -> np.ndarray:
    """Return uint64 that are as random as `bits`, in one-to-one correspondence, and unrelated for another seed."""
    return mix(bits ^ mix(np.array([seed], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)))


def _entries(run: Path, bounds: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Return the entries of a run in a range of places, and where their tokens begin and end in its file."""
    entries = np.load(run.with_name(run.name + _ENTRIES), mmap_mode="r")
    places = entries["place"]
    first, last = (bisect_left(places, bound, key=int) for bound in bounds)
    found = np.array(entries[first:last])
    if not len(found):
        return found, 0, 0
    return found, int(found["start"][0]), int(found["start"][-1]) + int(found["length"][-1])


def _differs(place: np.ndarray, half: np.ndarray) -> np.ndarray:
    """True where a sorted entry is not the same as the one before."""
    differs = np.ones(len(place), dtype=bool)
    differs[1:] = (place[1:] != place[:-1]) | (half[1:] != half[:-1])
    return differs
