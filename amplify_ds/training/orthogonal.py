"""The orthogonal factor of matrices, and whole matrices from the pieces of them that ranks hold.

ZeRO cuts the parameters of a group into one flat partition a rank; a matrix may lie on several. `Matrices` knows who
holds what, puts matrices together, and says which of them a rank is to work on: those of which it holds pieces, or,
where every rank holds pieces of all (ZeRO 3, or none), its share, the results of which are then exchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import distributed

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024, "Muon": they end between 0.7 and 1.2
BATCH = 2**26  # elements that are worked on at once


class Piece(NamedTuple):
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
    """The matrices of some partitions. shapes: of each matrix, by name; pieces: what each rank holds."""

    def __init__(self, shapes: dict[str, tuple[int, int]], pieces: Sequence[Sequence[Piece]], rank: int):
        names = list(dict.fromkeys(piece.matrix for held in pieces for piece in held))
        holders = {name: {r for r, held in enumerate(pieces) for piece in held if piece.matrix == name} for name in names}
        ranks = len(pieces)
        self.shapes = {name: shapes[name] for name in names}
        self.own = pieces[rank]
        self._pieces, self._rank = pieces, rank
        self._cut = any(piece.length < self._size(piece.matrix) for held in pieces for piece in held)
        self._shared = ranks > 1 and all(len(held_by) == ranks for held_by in holders.values())
        self.mine = [
            name for number, name in enumerate(names)
            if (number % ranks == rank if self._shared else rank in holders[name])
        ]  # fmt: skip

    @property
    def cut(self) -> bool:
        """Some rank holds less than all of a matrix."""
        return self._cut

    def orthogonal(self, partitions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """{name: orthogonal factor} of the matrices of which this rank holds pieces. Collective.

        partitions: what this rank holds, flat; one, if matrices are cut.
        """
        whole = self._gathered(partitions[0]) if self._cut else self._here(partitions)
        by_shape = defaultdict(list)
        for name in self.mine:
            by_shape[self.shapes[name]].append(name)
        found = {}
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
            piece.matrix: partitions[piece.partition][piece.offset :][: piece.length].view(self.shapes[piece.matrix])
            for piece in self.own
        }

    def _gathered(self, partition: torch.Tensor) -> dict[str, torch.Tensor]:
        ranks = partition.new_empty(len(self._pieces) * partition.numel())
        distributed.all_gather_into_tensor(ranks, partition)
        ranks = ranks.view(len(self._pieces), -1)
        parts = defaultdict(list)
        for rank, held in enumerate(self._pieces):
            for piece in held:
                parts[piece.matrix].append((piece.begin, ranks[rank, piece.offset :][: piece.length]))
        return {
            name: torch.cat([part for _, part in sorted(parts[name], key=lambda found: found[0])]).view(self.shapes[name])
            for name in self.mine
        }

    def _exchanged(self, found: dict[str, torch.Tensor], like: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = like.new_zeros(sum(map(self._size, self.shapes)))
        views = dict(zip(self.shapes, flat.split([self._size(name) for name in self.shapes])))
        for name, matrix in found.items():
            views[name].copy_(matrix.flatten())
        distributed.all_reduce(flat)
        return {name: view.view(self.shapes[name]) for name, view in views.items()}
