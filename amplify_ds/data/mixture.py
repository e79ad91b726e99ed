"""Sources mixed by weight, as a pure function: position in the stream -> (source, epoch, row).

Weights w_i are whole numbers, divided by their greatest common divisor; W is their sum. The stream is cut into cycles
of W positions, each with W slots in an order of its own: position p has the slot s = permute(p % W) in cycle c = p // W
(order.py). The slots are shared out: the first w_0 are source 0's, the next w_1 source 1's, and so on. A slot of source
i, whose slots begin at b_i, reads place c·w_i + s − b_i of that source's own endless order (order.rows_at).

So every cycle reads exactly w_i rows of source i and meets each of its places once, whatever the sizes of the sources;
each has epochs of its own. Nothing is stored, and any position is found at once. One source is W = 1.

A weight counts rows. Rows are full and of one size in all sources, so it is a share of the tokens too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from amplify_ds.data.order import permute, rows_at
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError

MAX_CYCLE = 10**5  # of W: `consumed` looks at every position of a cycle, in a hundredth of a second
_SLOTS = 2**32  # in a key: the order of the slots, which is that of no source


class Places(NamedTuple):
    """Where the rows at n positions of the stream come from: int64 [n] each."""

    sources: np.ndarray
    places: np.ndarray  # in the source's own endless order
    epochs: np.ndarray  # of the source
    rows: np.ndarray


@dataclass(frozen=True)
class Source:
    name: str
    weight: int
    shards: Shards


class Mixture:
    """Opened sources. row_tokens, max_length: of every batch. weights: int64 [sources], without a common divisor."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """AmplifyError if the sources cannot be mixed."""
        self.sources = tuple(sources)
        first = self.sources[0]
        for other in self.sources[1:]:
            if other.shards.row_tokens != first.shards.row_tokens:
                raise AmplifyError(
                    f"data.train: rows of {first.name} ({first.shards.path}) have {first.shards.row_tokens} tokens, "
                    f"those of {other.name} ({other.shards.path}) {other.shards.row_tokens}; sources that are mixed "
                    "need rows of one size. Build one again with --row-tokens of the other."
                )
        weights = [source.weight for source in self.sources]
        divisor = math.gcd(*weights)
        if sum(weights) // divisor > MAX_CYCLE:
            raise AmplifyError(
                f"data.train: the weights {', '.join(map(str, weights))} add up to {sum(weights) // divisor:,} without "
                f"their common divisor, at most {MAX_CYCLE:,} are possible; round them, as 123457:1000003 to 12:97."
            )
        self.weights = np.array([weight // divisor for weight in weights], dtype=np.int64)
        self.row_tokens = first.shards.row_tokens
        self.max_length = max(source.shards.max_length for source in self.sources)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    def at(self, positions: np.ndarray, seed: int) -> Places:
        """Return what the stream reads at `positions` (integers [n], >= 0)."""
        sources, places = split(positions, self.weights, seed)
        epochs, rows = np.empty_like(places), np.empty_like(places)
        for number, source in enumerate(self.sources):
            its = sources == number
            epochs[its], rows[its] = rows_at(places[its], source.shards.num_rows, seed, number)
        return Places(sources, places, epochs, rows)

    def epochs(self, position: int, seed: int) -> dict[str, float]:
        """Return how many passes over each source the positions before `position` are."""
        read = consumed(position, self.weights, seed)
        return {source.name: int(n) / source.shards.num_rows for source, n in zip(self.sources, read)}

    def tokens(self, name: str) -> int:
        """Return the real tokens of a source: one pass over it."""
        return self.sources[self.names.index(name)].shards.manifest["counts"]["tokens"]

    def packing_efficiency(self) -> float:
        """Share of the tokens read that are real."""
        full = [source.shards.manifest["packing_efficiency"] for source in self.sources]
        return sum(w * share for w, share in zip(self.weights.tolist(), full)) / int(self.weights.sum())

    def binding(self) -> list[dict]:
        """What must be the same when a run is resumed, as JSON."""
        return [
            {"name": source.name, "weight": int(weight), "fingerprint": source.shards.fingerprint}
            for source, weight in zip(self.sources, self.weights)
        ]


def split(positions: np.ndarray, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (sources, places in their orders), int64 [n] each, at `positions` (integers [n], >= 0)."""
    ends = np.cumsum(weights)
    cycles, within = np.divmod(np.asarray(positions, dtype=np.int64), ends[-1])
    slots = permute(within, int(ends[-1]), (seed, cycles, _SLOTS))
    sources = np.searchsorted(ends, slots, side="right")
    return sources, cycles * weights[sources] + slots - (ends - weights)[sources]


def consumed(position: int, weights: np.ndarray, seed: int) -> np.ndarray:
    """Return the number of rows of each source at the positions before `position`, int64 [sources]."""
    cycle, within = divmod(position, int(weights.sum()))
    begun, _ = split(np.arange(position - within, position), weights, seed)
    return cycle * weights + np.bincount(begun, minlength=len(weights))
