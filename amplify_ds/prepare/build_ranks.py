"""How the ranks of a build, on several machines, share their state, so that the failure of one ends all of them.

Twice a second, each rank writes its state to a common store (rendezvous.py) and reads: rank 0 the states of all other
ranks, the others that of rank 0. If a rank fails, all end with its message. They also end if a rank stops responding
because it was killed or its machine was lost: its state does not change for many polls. Polls are counted, not seconds,
because processes may be suspended.

All ranks stay until rank 0 is done: launchers and other ranks (launcher_watch.py) treat one that ends early as lost.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from amplify_ds.errors import AmplifyError

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS = 0.5
SILENT_POLLS = 360  # without a change of a rank's state, until it counts as lost
FAILURE_POLLS = 10  # that rank 0 waits after a failure, so that the others can read it before the store ends
RERUN = "What is complete is kept: run the same command again."


class Rank(NamedTuple):
    """The number of a rank, and how many ranks there are."""

    number: int
    world: int

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world}"


def rank_from_environment() -> Rank:
    """Return the rank of this process, from the launcher's variables; AmplifyError if these are invalid."""
    number, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    variables = f"the environment has RANK {number} and WORLD_SIZE {world}"
    if not (number.isdigit() and world.isdigit() and int(number) < int(world)):
        raise AmplifyError(
            f"{variables}; expected, as launchers set them, the number of this rank, from 0, and the number of ranks. "
            "Unset both to build with this process alone."
        )
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if int(world) > 1 and not (address and port.isdigit()):
        raise AmplifyError(
            f"{variables}, but no MASTER_ADDR and MASTER_PORT, where the ranks connect: the machine of rank 0 and a "
            "free port there. Use a launcher that sets all four, such as deepspeed or torchrun. Unset RANK and "
            "WORLD_SIZE to build with this process alone."
        )
    return Rank(int(number), int(world))


@contextmanager
def connected(rank: Rank) -> Iterator[BuildRanks]:
    """Connect to the other ranks for the block, after which they wait for rank 0. AmplifyError if another failed."""
    ranks = BuildRanks(rank)
    try:
        yield ranks
        if rank.number:
            ranks.wait_for("end")
    except BaseException as error:
        ranks.end(ranks.failure or f"{rank} failed on {platform.node()}: {str(error) or type(error).__name__}")
        raise
    ranks.end("")


class BuildRanks:
    """What the ranks publish for each other: JSON values by name. failure: why the build failed on another rank."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.failure = rank, ""
        others = range(1, rank.world) if rank.number == 0 else [0]
        self._published: dict[str, Any] = {"host": platform.node()}
        self._received: dict[int, dict[str, Any]] = {other: {} for other in others}
        self._silent: Counter[int] = Counter()  # polls since the state of a rank changed
        self._checked = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._exchange, daemon=True)
        if rank.world > 1:
            self._store = _connect(rank)
            self._thread.start()

    def publish(self, **values: Any) -> None:
        self._published = self._published | values

    def ready(self) -> None:
        """Publish that this rank has done its part. Rank 0 waits until all others have."""
        self.publish(ready=True)
        if self.rank.number == 0:
            self.wait_for("ready")

    def wait_for(self, name: str) -> list[Any]:
        """Wait until all ranks that this one reads have published `name`; return the values."""
        while not self._all_published(name):
            self.check()
            time.sleep(POLL_SECONDS / 5)
        self.check()
        return [state[name] for state in self._received.values()]

    def check(self) -> None:
        """Raise AmplifyError if the build has failed on another rank."""
        if time.monotonic() - self._checked >= POLL_SECONDS:
            self._checked = time.monotonic()
            self._silent.update(list(self._received))
            for other in [other for other, polls in self._silent.items() if polls > SILENT_POLLS]:
                self.failure = (
                    f"{self._name(other)} has not responded for {SILENT_POLLS * POLL_SECONDS:.0f} s: it failed, was "
                    "killed, or its machine was lost or cannot reach the others. " + RERUN
                )
        if self.failure:
            raise AmplifyError(self.failure)

    def end(self, failure: str) -> None:
        """Publish that this rank ends. Rank 0 waits until the others have replied: the store ends with it."""
        self.publish(end=failure)
        for _ in range(FAILURE_POLLS if failure else SILENT_POLLS):
            if self.rank.number or self._all_published("end"):
                break
            time.sleep(POLL_SECONDS)
        self._stop.set()
        if self.rank.world > 1:
            self._thread.join(FAILURE_POLLS * POLL_SECONDS)  # it hangs while rank 0 does not answer

    def _all_published(self, name: str) -> bool:
        return all(name in state for state in self._received.values())

    def _exchange(self) -> None:
        try:
            for number in count():
                last = self._stop.is_set()
                self._store.set(_key(self.rank.number), json.dumps(self._published | {"count": number}))
                for other, before in list(self._received.items()):
                    if self._store.check([_key(other)]):
                        state = json.loads(self._store.get(_key(other)))
                        if state != before:
                            self._received[other], self._silent[other] = state, 0
                            self.failure = self.failure or state.get("end", "")
                if last:
                    return
                self._stop.wait(POLL_SECONDS)
        except RuntimeError:  # of the connection
            self.failure = (
                self.failure or f"{self._name(0)} has ended: see its message. Without a message, it was killed. {RERUN}"
            )

    def _name(self, number: int) -> str:
        host = self._received[number].get("host")
        return f"{Rank(number, self.rank.world)}{f' on {host}' if host else ''}"


def _connect(rank: Rank) -> Store:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch logs pages about a broken connection
    from amplify_ds import rendezvous  # imports torch, which takes seconds

    store = rendezvous.meet(timedelta(seconds=SILENT_POLLS * POLL_SECONDS))
    if store.add(f"{_key(rank.number)}/times", 1) > 1:
        raise AmplifyError(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} is in use by another build, which already has a "
            f"rank {rank.number}. Give the launcher another port with --master_port."
        )
    return store


def _key(number: int) -> str:
    return f"build/rank-{number}"
