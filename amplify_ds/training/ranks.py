"""The rank of this process, the number of ranks and the device, with the collectives that training uses.

`engine.start_ranks` returns a `Ranks` and initialises the process group, which DeepSpeed uses too. A single process
uses `Ranks(0, 1, device)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from amplify_ds import bars

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This rank among `world_size` ranks. device: of this rank.

    `sum`, `barrier` and `from_leader` must be called on every rank.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """Whether this is rank 0, which owns the run directory and prints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values`, a tensor on this rank's device, replaced in place by the sums over all ranks."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        if self.world_size > 1:
            distributed.barrier()

    def from_leader(self, value: T) -> T:
        """Return on every rank the `value`, a number or text, that rank 0 passes."""
        box = [value]
        if self.world_size > 1:
            distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def print(self, text: str) -> None:
        """Print a line for the user, on rank 0 only."""
        if self.leader:
            bars.print_line(text)


def is_broken_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank is gone. gloo has no error type for this."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
