"""The ranks of a job as one of them sees them: which it is, how many there are, its device, and what they do together.

`engine.start_ranks` makes it, and the process group that DeepSpeed's own calls use too. A process that works by itself
is `Ranks(0, 1, device)`.
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
    """device: of this rank. `sum`, `barrier` and `from_leader` must be called on every rank."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """Whether this is the rank that owns the run directory and speaks to the user: rank 0."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Replace `values` (on this rank's device) by their sums over all ranks, and return them."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            distributed.barrier()

    def from_leader(self, what: T) -> T:
        """Return the value that rank 0 passes, a number or a text."""
        box = [what]
        if self.world_size > 1:
            distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def say(self, text: str) -> None:
        """Show a line to the user, once: rank 0 does."""
        if self.leader:
            bars.print_line(text)


def is_broken_connection(error: RuntimeError) -> bool:
    """A collective has failed because another rank is gone. gloo has no type of error for it."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
