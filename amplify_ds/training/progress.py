"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The progress of a run, which checkpoints contain."""

    step: int = 0  # optimizer steps taken
    skipped: list[int] = field(default_factory=list)  # batches whose update was not applied
    seconds: float = 0.0  # of training, without evaluation and checkpoints
    residues: int = 0  # read while training, over all ranks
    history: list[dict[str, Any]] = field(default_factory=list)  # every evaluation
    recent_losses: list[float] = field(default_factory=list)  # losses of the last steps, for guards.find_spikes

    @property
    def batch(self) -> int:
        """Number of batches read, which is also the number of the next batch."""
        return self.step + len(self.skipped)

    def skip(self) -> int:
        """Skip the next batch. Returns how many batches in a row have now been skipped."""
        self.skipped.append(self.batch)
        newest = self.skipped[::-1]
        return next((count for count, batch in enumerate(newest) if batch != newest[0] - count), len(newest))
