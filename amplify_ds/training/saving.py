"""Write checkpoints while training goes on: a thread writes what was copied to the host, one at a time.

A step waits for the copy, and for a write before it that is not done yet. What the thread could not write is an error
at the next look, with the older checkpoints untouched.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from amplify_ds.errors import AmplifyError
from amplify_ds.training.retention import Checkpoints


class BackgroundWriter:
    """Of one run. Rank 0 writes to its `checkpoints`; the other ranks have None, and nothing to wait for."""

    def __init__(self, checkpoints: Checkpoints | None):
        self.checkpoints = checkpoints
        self.problem: AmplifyError | None = None
        self.seconds = 0.0  # that the last write took
        self._thread: threading.Thread | None = None

    def start(self, named_state: list, state: dict[str, Any]) -> None:
        """Begin to write, on rank 0; waits for the write before."""
        assert self.checkpoints is not None, "only rank 0 writes"
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(self.checkpoints, named_state, state))
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is on the disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoints: Checkpoints, named_state: list, state: dict[str, Any]) -> None:
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
