"""Write checkpoints while training goes on: a thread writes what was copied to the host, one at a time.

A step waits for the copy, and for a write before it that is not done yet. What the thread could not write is an error
at the next check; older checkpoints are untouched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.training.retention import Checkpoints

NamedState = Iterable[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]


class BackgroundWriter:
    """Of one run. Rank 0 writes to its `checkpoints`; the other ranks have None, and nothing to wait for."""

    def __init__(self, checkpoints: Checkpoints | None):
        self.checkpoints = checkpoints
        self.problem: AmplifyError | None = None
        self.seconds = 0.0  # that the last write took
        self._thread: threading.Thread | None = None

    def start(self, named_state: NamedState, state: dict[str, Any]) -> None:
        """Copy `named_state` (FullState.named) to the host and begin to write it, on rank 0; the others help to
        gather it. Waits for the previous write. Must be called on every rank.
        """
        self.wait()
        copies = []
        for name, weight, moments in named_state:
            if self.checkpoints is not None:
                copies.append((name, _host_copy(weight), {key: _host_copy(value) for key, value in moments.items()}))
        if self.checkpoints is not None:
            self._thread = threading.Thread(target=self._write, args=(self.checkpoints, copies, state))
            self._thread.start()

    def wait(self) -> None:
        """Until what was begun is on the disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoints: Checkpoints, named_state: NamedState, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            checkpoints.write(named_state, state)
        except AmplifyError as error:
            self.problem = error
        except OSError as error:
            self.problem = AmplifyError(f"{error.filename}: {error.strerror}")
        except Exception as error:  # a thread's traceback would be seen, and the run would go on without checkpoints
            self.problem = AmplifyError(f"{checkpoints.run}: the checkpoint could not be written ({error!r})")
        self.seconds = time.perf_counter() - began


def _host_copy(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", torch.float32, copy=True).contiguous()
