"""The ranks of a build, on several machines, know of each other through the store that they share (rendezvous.py).

Twice a second each writes there what it says, and reads: rank 0 what all others say, they what rank 0 says. So the
failure of one ends all with its message, and so does its silence: it was killed, or its machine was lost. Processes
are suspended: silence is what does not change during many looks, however long they took.

All stay until rank 0 is done: launchers and other ranks (launcher_watch.py) treat one that ends early as lost.
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

SECONDS_BETWEEN_LOOKS = 0.5
SILENT_LOOKS = 360
LOOKS_AT_A_FAILURE = 10  # that the others have before the store goes with rank 0
AGAIN = "What is complete is kept: run the same command again."


class Rank(NamedTuple):
    """Which process of how many."""

    number: int
    world: int

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world}"


def launched() -> Rank:
    """Return which rank this is, by the launcher's variables; AmplifyError if they make no sense."""
    number, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    found = f"the environment has RANK {number} and WORLD_SIZE {world}"
    if not (number.isdigit() and world.isdigit() and int(number) < int(world)):
        raise AmplifyError(
            f"{found}; expected, as launchers set them, a number from 0 on and how many there are. Unset both to build "
            "with this process alone."
        )
    place = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if int(world) > 1 and not (place[0] and place[1].isdigit()):
        raise AmplifyError(
            f"{found}, but no MASTER_ADDR and MASTER_PORT, where the ranks meet: the machine of rank 0 and the number "
            "of a free port there. Start them by a launcher that sets all four, as deepspeed and torchrun do. Unset "
            "RANK and WORLD_SIZE to build with this process alone."
        )
    return Rank(int(number), int(world))


@contextmanager
def together(rank: Rank) -> Iterator[BuildRanks]:
    """Meet the other ranks; in the end they wait for rank 0. AmplifyError when another has failed."""
    ranks = BuildRanks(rank)
    try:
        yield ranks
        if rank.number:
            ranks.wait_for("end")
    except BaseException as error:
        ranks.end(ranks.trouble or f"{rank} failed on {platform.node()}: {str(error) or type(error).__name__}")
        raise
    ranks.end("")


class BuildRanks:
    """What the ranks say to each other: JSON, by names. trouble: why the build has failed elsewhere."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.trouble = rank, ""
        others = range(1, rank.world) if rank.number == 0 else [0]
        self._said: dict[str, Any] = {"host": platform.node()}
        self._heard: dict[int, dict[str, Any]] = {other: {} for other in others}
        self._silent: Counter[int] = Counter()
        self._looked = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        if rank.world > 1:
            self._store = _meet(rank)
            self._thread.start()

    def say(self, **what: Any) -> None:
        self._said = self._said | what

    def ready(self) -> None:
        """This rank has done its part. Rank 0 waits until all others have."""
        self.say(ready=True)
        if self.rank.number == 0:
            self.wait_for("ready")

    def wait_for(self, name: str) -> list[Any]:
        """Wait until those whom this rank hears (rank 0 all others, they rank 0) have said `name`; return what."""
        while not self._all_said(name):
            self.check()
            time.sleep(SECONDS_BETWEEN_LOOKS / 5)
        self.check()
        return [heard[name] for heard in self._heard.values()]

    def check(self) -> None:
        """AmplifyError if the build has failed elsewhere."""
        if time.monotonic() - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            self._silent.update(list(self._heard))
            for other in [other for other, looks in self._silent.items() if looks > SILENT_LOOKS]:
                self.trouble = (
                    f"{self._name(other)} has shown no sign of life for {SILENT_LOOKS * SECONDS_BETWEEN_LOOKS:.0f} s: "
                    "it has failed, was killed, or its machine was lost or does not reach the others. " + AGAIN
                )
        if self.trouble:
            raise AmplifyError(self.trouble)

    def end(self, failure: str) -> None:
        """Say the last word. Rank 0, with whom the store goes, waits until the others have answered it."""
        self.say(end=failure)
        for _ in range(LOOKS_AT_A_FAILURE if failure else SILENT_LOOKS):
            if self.rank.number or self._all_said("end"):
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._stop.set()
        if self.rank.world > 1:
            self._thread.join(LOOKS_AT_A_FAILURE * SECONDS_BETWEEN_LOOKS)  # it hangs while rank 0 does not answer

    def _all_said(self, name: str) -> bool:
        return all(name in heard for heard in self._heard.values())

    def _talk(self) -> None:
        try:
            for number in count():
                last = self._stop.is_set()
                self._store.set(_key(self.rank.number), json.dumps(self._said | {"count": number}))
                for other, before in list(self._heard.items()):
                    if self._store.check([_key(other)]):
                        heard = json.loads(self._store.get(_key(other)))
                        if heard != before:
                            self._heard[other], self._silent[other] = heard, 0
                            self.trouble = self.trouble or heard.get("end", "")
                if last:
                    return
                self._stop.wait(SECONDS_BETWEEN_LOOKS)
        except RuntimeError:  # of the connection
            self.trouble = (
                self.trouble or f"{self._name(0)} has ended: see its message; without one it was killed. {AGAIN}"
            )

    def _name(self, number: int) -> str:
        host = self._heard[number].get("host")
        return f"{Rank(number, self.rank.world)}{f' on {host}' if host else ''}"


def _meet(rank: Rank) -> Store:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else pages about a connection that breaks
    from amplify_ds import rendezvous  # seconds, only for those who need it

    store = rendezvous.meet(timedelta(seconds=SILENT_LOOKS * SECONDS_BETWEEN_LOOKS))
    if store.add(f"{_key(rank.number)}/times", 1) > 1:
        raise AmplifyError(
            f"the ranks of another build meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, and have a "
            f"rank {rank.number} already. Give the launcher another port with --master_port."
        )
    return store


def _key(number: int) -> str:
    return f"build/rank-{number}"
