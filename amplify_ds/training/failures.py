"""When one rank fails, it alone says why, and all ranks end.

A rank that fails would otherwise take the others down with errors of their own, of broken connections, that hide what
was wrong. So it first writes that it failed into the store that the ranks share (rendezvous.py). On every other rank a
thread looks for that and ends the process, silently and whatever the rest of it waits for: the store, a collective, a
step. This works from the moment when the ranks have found the store, before they have opened a run or joined a group.
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

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_BE_SEEN = 5.0
FAILED, SEEN, DONE = "amplify_ds/failed", "amplify_ds/seen", "amplify_ds/done"

_store: Store | None = None
_stopped = threading.Event()


def watch(store: Store) -> None:
    """End this process when another rank fails, until `stop` is called. A run of one rank has nothing to watch."""
    global _store
    launcher_watch.met()
    if int(os.environ["WORLD_SIZE"]) > 1:
        # A connection of its own: one that waits for a key holds up all who use it.
        _store = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        threading.Thread(target=_look_on, args=(_store,), daemon=True).start()


def stop() -> None:
    """From now on other ranks may end before this one."""
    _stopped.set()


def announce(reason: str, code: int = 1) -> None:
    """Let the other ranks exit with `code`, because this one has failed, and wait until they have seen it."""
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


def _look_on(store: Store) -> None:
    try:
        while not _stopped.wait(SECONDS_BETWEEN_LOOKS):
            if store.check([FAILED]):
                code, _, reason = store.get(FAILED).decode().partition(" ")
                store.add(SEEN, 1)
                if os.environ["RANK"] == "0":  # whose store the one that has failed still asks
                    store.wait([DONE], timedelta(seconds=SECONDS_TO_BE_SEEN))
                _end(reason, int(code))
    except RuntimeError:  # the store is gone with rank 0; what that means is for launcher_watch.py
        pass


def _end(reason: str, code: int) -> None:
    if errors.console is not None:  # standard error is this rank's log
        print(reason, file=sys.stderr, flush=True)
    os._exit(code)
