"""Sources mixed by weight, as a pure function: position in the stream -> (source, epoch, row).

Weights w_i are integers, divided by their greatest common divisor; W is their sum. The stream is divided into cycles of
W positions. Cycle c = p // W assigns position p the slot s = permute(p % W), with a permutation for each cycle
(order.py). The first w_0 slots belong to source 0, the next w_1 to source 1, and so on. A slot s of source i, whose
slots begin at b_i, reads index c·w_i + s − b_i of the endless order of that source (order.rows_at).

So every cycle reads exactly w_i rows of source i, and every index of its order is read once, whatever the sizes of the
sources; each source has epochs of its own. Nothing is stored, and any position is computed directly. A single source is
W = 1.

A weight counts rows. Rows are full and have the same size in all sources, so it is a share of the tokens too.
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

MAX_CYCLE = 10**5  # limit of W: `consumed` visits every position of a cycle, in a hundredth of a second
_SLOTS = 2**32  # in the key of the order of the slots; no source has this number


class StreamRows(NamedTuple):
    """The rows at n positions of the stream: int64 [n] each."""

    sources: np.ndarray
    indices: np.ndarray  # in the endless order of the source
    epochs: np.ndarray  # of the source
    rows: np.ndarray


@dataclass(frozen=True)
class Source:
    name: str
    weight: int
    shards: Shards


class Mixture:
    """Sources to be mixed. row_tokens, max_length: of every batch. weights: int64 [sources], in lowest terms."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Raises AmplifyError if the sources cannot be mixed."""
        self.sources = tuple(sources)
        first = self.sources[0]
        for other in self.sources[1:]:
            if other.shards.row_tokens != first.shards.row_tokens:
                raise AmplifyError(
                    f"data.train: rows of {first.name} ({first.shards.path}) have {first.shards.row_tokens} tokens, "
                    f"those of {other.name} ({other.shards.path}) {other.shards.row_tokens}; mixed sources need rows "
                    "of the same size. Rebuild one of them with the --row-tokens of the other."
                )
        weights = [source.weight for source in self.sources]
        divisor = math.gcd(*weights)
        if sum(weights) // divisor > MAX_CYCLE:
            raise AmplifyError(
                f"data.train: the weights {', '.join(map(str, weights))}, in lowest terms, add up to "
                f"{sum(weights) // divisor:,}; the limit is {MAX_CYCLE:,}. Round them, for example 123457:1000003 to "
                "12:97."
            )
        self.weights = np.array([weight // divisor for weight in weights], dtype=np.int64)
        self.row_tokens = first.shards.row_tokens
        self.max_length = max(source.shards.max_length for source in self.sources)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    def at(self, positions: np.ndarray, seed: int) -> StreamRows:
        """Return the rows at `positions` of the stream (integers [n], >= 0)."""
        sources, indices = sources_at(positions, self.weights, seed)
        epochs, rows = np.empty_like(indices), np.empty_like(indices)
        for number, source in enumerate(self.sources):
            selected = sources == number
            epochs[selected], rows[selected] = rows_at(indices[selected], source.shards.num_rows, seed, number)
        return StreamRows(sources, indices, epochs, rows)

    def epochs(self, position: int, seed: int) -> dict[str, float]:
        """Return the number of passes over each source that the stream makes before `position`."""
        counts = consumed(position, self.weights, seed)
        return {source.name: int(n) / source.shards.num_rows for source, n in zip(self.sources, counts)}

    def tokens(self, name: str) -> int:
        """Return the number of tokens of a source, without padding."""
        return self.sources[self.names.index(name)].shards.manifest["counts"]["tokens"]

    def packing_efficiency(self) -> float:
        """Return the share of the tokens read that is not padding."""
        shares = [source.shards.manifest["packing_efficiency"] for source in self.sources]
        return sum(w * share for w, share in zip(self.weights.tolist(), shares)) / int(self.weights.sum())

    def binding(self) -> list[dict]:
        """Return what must not change when a run is resumed, as JSON."""
        return [
            {"name": source.name, "weight": int(weight), "fingerprint": source.shards.fingerprint}
            for source, weight in zip(self.sources, self.weights)
        ]


def sources_at(positions: np.ndarray, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (sources, indices in their orders), int64 [n] each, at `positions` (integers [n], >= 0)."""
    ends = np.cumsum(weights)
    cycles, within = np.divmod(np.asarray(positions, dtype=np.int64), ends[-1])
    slots = permute(within, int(ends[-1]), (seed, cycles, _SLOTS))
    sources = np.searchsorted(ends, slots, side="right")
    return sources, cycles * weights[sources] + slots - (ends - weights)[sources]


def consumed(position: int, weights: np.ndarray, seed: int) -> np.ndarray:
    """Return the number of rows of each source at the positions before `position`, int64 [sources]."""
    cycle, within = divmod(position, int(weights.sum()))
    sources, _ = sources_at(np.arange(position - within, position), weights, seed)
    return cycle * weights + np.bincount(sources, minlength=len(weights))
