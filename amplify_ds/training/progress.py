"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What is carried from step to step, and through checkpoints."""

    step: int = 0  # optimizer steps taken
    skipped: list[int] = field(default_factory=list)  # the batches whose update was not applied
    seconds: float = 0.0  # spent training, without evaluation and checkpoints
    residues: int = 0  # read while training, over all ranks
    history: list[dict[str, Any]] = field(default_factory=list)  # every evaluation
    recent_losses: list[float] = field(default_factory=list)  # of the last steps, for guards.find_spikes

    @property
    def batch(self) -> int:
        """Batches read, and so the number of the next one."""
        return self.step + len(self.skipped)

    def skip(self) -> int:
        """Leave the next batch out; returns how many have now been left out in a row."""
        self.skipped.append(self.batch)
        newest = self.skipped[::-1]
        return next((count for count, batch in enumerate(newest) if batch != newest[0] - count), len(newest))
