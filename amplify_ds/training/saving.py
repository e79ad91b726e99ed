"""Write checkpoints in the background: a thread writes the copy on the host while training continues.

Training waits for the copy, and for the previous write if that is not done yet. If a write fails, the next check of
`problem` ends the run; older checkpoints are intact.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterable
from typing import Any

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.training.retention import Checkpoints

# What a client of a file server reports while the server or the way to it is down.
OUTAGES = (
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ESHUTDOWN,
)
OUTAGE_SECONDS, SECONDS_BETWEEN_TRIES = 600.0, 5.0
NamedState = Iterable[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]


class BackgroundWriter:
    """Writes the checkpoints of one run. checkpoints: None except on rank 0, which writes.

    problem: the error of a write that failed, or None. seconds: duration of the last write.
    """

    def __init__(self, checkpoints: Checkpoints | None):
        self.checkpoints = checkpoints
        self.problem: AmplifyError | None = None
        self.seconds = 0.0
        self._thread: threading.Thread | None = None

    def start(self, named_state: NamedState, state: dict[str, Any]) -> None:
        """Copy `named_state` (FullState.named) to rank 0's host memory and start writing it there.

        Waits for the previous write. Must be called on every rank, because the state is gathered from all ranks.
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
        """Wait until the write in progress is on disk or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoints: Checkpoints, named_state: NamedState, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            _write_through_outages(checkpoints, named_state, state)
        except AmplifyError as error:
            self.problem = error
        except OSError as error:
            self.problem = AmplifyError(f"{error.filename}: {error.strerror}")
        except Exception as error:  # otherwise the run would continue without checkpoints
            self.problem = AmplifyError(f"{checkpoints.run}: the checkpoint could not be written ({error!r})")
        self.seconds = time.perf_counter() - began


def _write_through_outages(checkpoints: Checkpoints, named_state: NamedState, state: dict[str, Any]) -> None:
    """Write a checkpoint. While the file server is away, try again for OUTAGE_SECONDS; warn once."""
    deadline, warned = time.monotonic() + OUTAGE_SECONDS, False
    while True:
        try:
            return checkpoints.write(named_state, state)
        except (AmplifyError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if getattr(cause, "errno", None) not in OUTAGES or time.monotonic() > deadline:
                raise
            if not warned:
                checkpoints.print_line(f"warning: {error} Trying again for {OUTAGE_SECONDS / 60:.0f} minutes.")
                warned = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _host_copy(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", torch.float32, copy=True).contiguous()
