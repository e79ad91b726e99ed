"""Flags that the ranks share: a flag set on one rank reaches all ranks one step later, without an idle GPU.

Flags are summed over the ranks on the device, queued behind the work that is there. The host reads the sums at the next
step boundary. They have long arrived by then, because DeepSpeed has read the gradient norm in between. All ranks read
the same sums at the same boundary, so they take the same decision.
"""

from __future__ import annotations

import torch

from amplify_ds.training.ranks import Ranks


class SharedFlags:
    """`count` flags. Every rank calls `send` and `received` alternately."""

    def __init__(self, count: int, ranks: Ranks):
        self._ranks = ranks
        on_gpu = ranks.device.type == "cuda"  # then pinned, so that the host does not wait for copies
        self._local, self._sums = (torch.zeros(count, pin_memory=on_gpu) for _ in range(2))
        self._on_device = torch.zeros(count, device=ranks.device)
        self._arrived = torch.cuda.Event() if on_gpu else None

    def send(self, *flags: bool) -> None:
        """Send this rank's flags to all ranks. Must be called on every rank."""
        self._wait()
        self._local.copy_(torch.tensor(flags))
        self._on_device.copy_(self._local, non_blocking=True)
        self._ranks.sum(self._on_device)
        self._sums.copy_(self._on_device, non_blocking=True)
        if self._arrived:
            self._arrived.record()

    def received(self) -> list[bool]:
        """Return for each flag whether any rank had set it at the last `send`."""
        self._wait()
        return [ranks > 0 for ranks in self._sums.tolist()]

    def _wait(self) -> None:
        if self._arrived:
            self._arrived.synchronize()
