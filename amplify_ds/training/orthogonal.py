"""The orthogonal factor of matrices, and whole matrices from the fragments of them that ranks hold.

ZeRO cuts the parameters of a group into one flat partition a rank; a matrix may lie on several. `Matrices` knows who
holds what, puts matrices together, and says which of them a rank is to work on: those of which it holds fragments, or,
where every rank holds fragments of all (ZeRO 3, or none), its share, the results of which are then exchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import distributed

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024, "Muon": they end between 0.7 and 1.2
BATCH = 2**26  # elements that are worked on at once


class Fragment(NamedTuple):
    """Elements [begin, begin + length) of a matrix, row after row: from `offset` on in partition number `partition`."""

    matrix: str
    begin: int
    length: int
    offset: int
    partition: int = 0


def orthogonal_factor(matrices: torch.Tensor) -> torch.Tensor:
    """[B, m, n] -> about U·Vᵀ of each one's singular value decomposition U·S·Vᵀ, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Matrices:
    """The matrices of some partitions. shapes: of each matrix, by name; fragments: what each rank holds."""

    def __init__(self, shapes: dict[str, tuple[int, int]], fragments: Sequence[Sequence[Fragment]], rank: int):
        held = [{fragment.matrix for fragment in own} for own in fragments]
        names = list(dict.fromkeys(fragment.matrix for own in fragments for fragment in own))
        self.shapes = {name: shapes[name] for name in names}
        self.own = fragments[rank]
        self.cut = any(
            fragment.length < self._size(fragment.matrix) for own in fragments for fragment in own
        )  # on some rank
        self._ranks = len(fragments)
        self._parts = defaultdict(list)  # of each matrix, in order: rank, begin and end in its partition
        for _, holder, fragment in sorted(
            (fragment.begin, number, fragment) for number, own in enumerate(fragments) for fragment in own
        ):
            self._parts[fragment.matrix].append((holder, fragment.offset, fragment.offset + fragment.length))
        self._shared = len(fragments) > 1 and all(own == set(names) for own in held)
        self._mine = names[rank :: len(fragments)] if self._shared else [name for name in names if name in held[rank]]

    def orthogonal(self, partitions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """{name: orthogonal factor} of the matrices of which this rank holds fragments. Must be called on every rank.

        partitions: what this rank holds, flat; one, if matrices are cut.
        """
        whole = self._gathered(partitions[0]) if self.cut else self._here(partitions)
        by_shape: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in self._mine:
            by_shape[self.shapes[name]].append(name)
        found: dict[str, torch.Tensor] = {}
        for (rows, columns), names in by_shape.items():
            at_once = max(1, BATCH // (rows * columns))
            for some in (names[i : i + at_once] for i in range(0, len(names), at_once)):
                found.update(zip(some, orthogonal_factor(torch.stack([whole[name] for name in some]))))
        return self._exchanged(found, partitions[0]) if self._shared else found

    def _size(self, name: str) -> int:
        rows, columns = self.shapes[name]
        return rows * columns

    def _here(self, partitions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            fragment.matrix: partitions[fragment.partition][fragment.offset :][: fragment.length].view(
                self.shapes[fragment.matrix]
            )
            for fragment in self.own
        }

    def _gathered(self, partition: torch.Tensor) -> dict[str, torch.Tensor]:
        ranks = partition.new_empty(self._ranks * partition.numel())
        distributed.all_gather_into_tensor(ranks, partition)
        ranks = ranks.view(self._ranks, -1)
        return {
            name: torch.cat([ranks[rank, begin:end] for rank, begin, end in self._parts[name]]).view(self.shapes[name])
            for name in self._mine
        }

    def _exchanged(self, found: dict[str, torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = like.new_zeros(sum(map(self._size, self.shapes)))
        views = dict(zip(self.shapes, flat.split([self._size(name) for name in self.shapes])))
        for name, matrix in found.items():
            views[name].copy_(matrix.flatten())
        distributed.all_reduce(flat)
        return {name: view.view(self.shapes[name]) for name, view in views.items()}
