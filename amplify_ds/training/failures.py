"""When one rank fails, only that rank prints its error, and all ranks exit.

Otherwise the other ranks would print errors about broken connections, which hide the cause. So the failing rank first
writes its error to the store that the ranks share (rendezvous.py). On every other rank a thread polls the store and
ends the process silently, even while the process waits for the store, a collective or a step. This works as soon as
the ranks have found the store, before they open a run or join a process group.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from amplify_ds import errors
from amplify_ds.training import launcher_watch

if TYPE_CHECKING:  # this is imported before anything that takes seconds
    from torch.distributed import Store

SECONDS_BETWEEN_POLLS = 0.5
SECONDS_TO_BE_SEEN = 5.0
FAILED, SEEN, DONE = "amplify_ds/failed", "amplify_ds/seen", "amplify_ds/done"

_store: Store | None = None
_stopped = threading.Event()


def watch(store: Store) -> None:
    """End this process when another rank fails, until `stop` is called. Does nothing in a run of one rank."""
    global _store
    launcher_watch.met()
    if int(os.environ["WORLD_SIZE"]) > 1:
        # A separate connection, because waiting for a key blocks all users of a connection.
        _store = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        threading.Thread(target=_poll, args=(_store,), daemon=True).start()


def stop() -> None:
    """Stop watching: from now on other ranks may end before this one."""
    _stopped.set()


def announce(reason: str, code: int = 1) -> None:
    """Make the other ranks exit with `code`, because this one has failed, and wait until they have seen it."""
    stop()
    launcher_watch.finished()  # the others end before this one
    if _store is None:
        return
    try:
        _store.set(FAILED, f"{code} rank {os.environ['RANK']} on {socket.gethostname()} has failed: {reason}")
        deadline = time.monotonic() + SECONDS_TO_BE_SEEN
        while _store.add(SEEN, 0) < int(os.environ["WORLD_SIZE"]) - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        _store.set(DONE, "")
    except RuntimeError:  # rank 0 and its store are gone
        pass


def _poll(store: Store) -> None:
    """Poll the store until another rank fails or `stop` is called."""
    try:
        while not _stopped.wait(SECONDS_BETWEEN_POLLS):
            if store.check([FAILED]):
                code, _, reason = store.get(FAILED).decode().partition(" ")
                store.add(SEEN, 1)
                if os.environ["RANK"] == "0":  # it hosts the store, which the failing rank still needs
                    store.wait([DONE], timedelta(seconds=SECONDS_TO_BE_SEEN))
                _end(reason, int(code))
    except RuntimeError:  # the store is gone with rank 0, which launcher_watch.py handles
        pass


def _end(reason: str, code: int) -> None:
    if errors.console is not None:  # standard error is this rank's log
        print(reason, file=sys.stderr, flush=True)
    os._exit(code)
