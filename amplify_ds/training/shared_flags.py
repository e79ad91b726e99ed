"""What one rank knows, all ranks learn, at the price of a step and not of a GPU that runs dry.

Flags are summed over the ranks on the device, behind the work that is queued there; the host looks at the sums when
it comes to the next step boundary. By then they have long arrived: DeepSpeed has read the norm of the step in between.
All ranks read the same sums at the same boundary, so what they decide from them is the same.
"""

from __future__ import annotations

import torch

from amplify_ds.training.ranks import Ranks


class SharedFlags:
    """On `count` flags. Every rank calls `send` and `received` in turn."""

    def __init__(self, count: int, ranks: Ranks):
        self._ranks = ranks
        on_gpu = ranks.device.type == "cuda"  # then pinned, so that copies need not be waited for
        self._own, self._sums = (torch.zeros(count, pin_memory=on_gpu) for _ in range(2))
        self._on_device = torch.zeros(count, device=ranks.device)
        self._arrived = torch.cuda.Event() if on_gpu else None

    def send(self, *flags: bool) -> None:
        """Publish this rank's flags. Must be called on every rank."""
        self._wait()
        self._own.copy_(torch.tensor(flags))
        self._on_device.copy_(self._own, non_blocking=True)
        self._ranks.sum(self._on_device)
        self._sums.copy_(self._on_device, non_blocking=True)
        if self._arrived:
            self._arrived.record()

    def received(self) -> list[bool]:
        """For each flag whether any rank had set it at the last `send`."""
        self._wait()
        return [ranks > 0 for ranks in self._sums.tolist()]

    def _wait(self) -> None:
        if self._arrived:
            self._arrived.synchronize()
