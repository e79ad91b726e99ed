"""The orthogonal factor of matrices whose fragments are distributed over the ranks.

ZeRO splits the parameters of a group into one flat partition per rank, and a matrix may extend over several. `Matrices`
knows the fragments on each rank, assembles whole matrices and assigns them to ranks. A rank computes the matrices of
which it has fragments. If every rank has fragments of all matrices (ZeRO 3, or no ZeRO), each computes a share and the
results are exchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import distributed

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024, "Muon": singular values of 0.7 to 1.2
BATCH = 2**26  # elements that are computed at once


class Fragment(NamedTuple):
    """Elements [begin, begin + length) of a matrix in row-major order, at `offset` in partition number `partition`."""

    matrix: str
    begin: int
    length: int
    offset: int
    partition: int = 0


def orthogonal_factor(matrices: torch.Tensor) -> torch.Tensor:
    """Return about U·Vᵀ of the singular value decomposition U·S·Vᵀ of each matrix in [B, m, n], by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Matrices:
    """The matrices in some partitions. shapes: shape of each matrix, by name; fragments: those on each rank.

    local: fragments on this rank. split: whether a matrix extends over several ranks.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], fragments: Sequence[Sequence[Fragment]], rank: int):
        names_by_rank = [{fragment.matrix for fragment in of_rank} for of_rank in fragments]
        names = list(dict.fromkeys(fragment.matrix for of_rank in fragments for fragment in of_rank))
        self.shapes = {name: shapes[name] for name in names}
        self.local = fragments[rank]
        self.split = any(fragment.length < self._size(fragment.matrix) for of_rank in fragments for fragment in of_rank)
        self._ranks = len(fragments)
        self._parts = defaultdict(list)  # {matrix: [(rank, begin and end in its partition), …]}, in order
        for _, number, fragment in sorted(
            (fragment.begin, number, fragment) for number, of_rank in enumerate(fragments) for fragment in of_rank
        ):
            self._parts[fragment.matrix].append((number, fragment.offset, fragment.offset + fragment.length))
        self._shared = len(fragments) > 1 and all(of_rank == set(names) for of_rank in names_by_rank)
        if self._shared:
            self._assigned = names[rank :: len(fragments)]
        else:
            self._assigned = [name for name in names if name in names_by_rank[rank]]

    def orthogonal(self, partitions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {name: orthogonal factor} of the matrices of which this rank has fragments.

        partitions: flat partitions of this rank; only one if matrices are split. Must be called on every rank.
        """
        whole = self._gather(partitions[0]) if self.split else self._local_matrices(partitions)
        by_shape: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in self._assigned:
            by_shape[self.shapes[name]].append(name)
        factors: dict[str, torch.Tensor] = {}
        for (rows, columns), names in by_shape.items():
            at_once = max(1, BATCH // (rows * columns))
            for batch in (names[i : i + at_once] for i in range(0, len(names), at_once)):
                factors.update(zip(batch, orthogonal_factor(torch.stack([whole[name] for name in batch]))))
        return self._exchange(factors, partitions[0]) if self._shared else factors

    def _size(self, name: str) -> int:
        rows, columns = self.shapes[name]
        return rows * columns

    def _local_matrices(self, partitions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            fragment.matrix: partitions[fragment.partition][fragment.offset :][: fragment.length].view(
                self.shapes[fragment.matrix]
            )
            for fragment in self.local
        }

    def _gather(self, partition: torch.Tensor) -> dict[str, torch.Tensor]:
        ranks = partition.new_empty(self._ranks * partition.numel())
        distributed.all_gather_into_tensor(ranks, partition)
        ranks = ranks.view(self._ranks, -1)
        return {
            name: torch.cat([ranks[rank, begin:end] for rank, begin, end in self._parts[name]]).view(self.shapes[name])
            for name in self._assigned
        }

    def _exchange(self, factors: dict[str, torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = like.new_zeros(sum(map(self._size, self.shapes)))
        views = dict(zip(self.shapes, flat.split([self._size(name) for name in self.shapes])))
        for name, matrix in factors.items():
            views[name].copy_(matrix.flatten())
        distributed.all_reduce(flat)
        return {name: view.view(self.shapes[name]) for name, view in views.items()}
