"""The ranks of a build, on several machines, know of each other through files in the directory that they share.

Rank 0 writes `rank-0.json` into its work directory: what it is about to do. The others wait for it, compare, and add
`rank-N.json`. Each touches its own file every second; one that fails adds the reason, one that is ready a null. Rank
0 looks at all others, they look at rank 0. So a failure of one ends all with its message, and so does its silence:
it was killed, or its machine was lost.

Machines have different clocks and processes are suspended: silence is a file that does not change during many looks,
whatever its time says. Files of an earlier build mislead nobody: its work directory has another name (`shard_writer`),
and `rank-0.json` says for which it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from amplify_ds.data.shard_writer import writing
from amplify_ds.errors import AmplifyError

SECONDS_BETWEEN_LOOKS = 1.0
SILENT_LOOKS = 180  # a network file system may take a minute to show what another machine has written


class Rank(NamedTuple):
    """Which process of how many."""

    number: int
    world: int

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world}"


class _Seen(NamedTuple):
    """A rank's file. changed: its time. first: what it is about to do. end: [], [null], [why it failed]."""

    changed: int
    first: dict
    end: list[str | None]


def launched() -> Rank:
    """Return which rank this is, by the launcher's RANK and WORLD_SIZE; AmplifyError if they make no sense."""
    number, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (number.isdigit() and world.isdigit() and int(number) < int(world)):
        raise AmplifyError(
            f"the environment has RANK {number} and WORLD_SIZE {world}; expected, as launchers set them, a number from "
            "0 on and how many there are. Unset both to build with this process alone."
        )
    return Rank(int(number), int(world))


def wait_for_first(partial: Path, is_complete: Callable[[], bool]) -> Path | None:
    """Return the directory in `partial` where rank 0 is at work; None if there is nothing left to do."""
    before, looks = _begun(partial), 0
    while (now := _begun(partial)) in (None, before):
        if is_complete():
            return None
        looks += 1
        if looks > SILENT_LOOKS:
            raise AmplifyError(
                f"rank 0 of this build has not begun after {_patience()}: it has failed, or this machine does not "
                f"share {partial.parent} with it."
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return now[0]


@contextmanager
def watching(work: Path, rank: Rank, plan: Any) -> Iterator[Callable[[], None]]:
    """Begin the build in `work`, or join it; yield a function: AmplifyError if it has failed elsewhere.

    plan: what this rank is about to do, as JSON; the same for all. At the end rank 0 waits for all that joined.
    """
    if rank.world == 1:
        yield lambda: None
        return
    watch = _Watch(work, rank, plan)
    try:
        yield watch.check
        if rank.number == 0:
            watch.wait()
    except BaseException as error:
        watch.end(watch.trouble or f"{rank} failed on {platform.node()}: {str(error) or type(error).__name__}")
        raise
    if rank.number:  # rank 0 shows that it lives until it has removed the directory
        watch.end(None)


class _Watch:
    """Touches this rank's file and looks at those of others, in a thread. trouble: why the build has failed."""

    def __init__(self, work: Path, rank: Rank, plan: Any) -> None:
        self.trouble: str | None = None
        self._work, self._rank = work, rank
        self._others: dict[int, _Seen | None] = dict.fromkeys(range(1, rank.world) if rank.number == 0 else [0])
        self._silent = dict.fromkeys(self._others, 0)
        self._stop = threading.Event()
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        first = {"work": work.name, "world": rank.world, "plan": digest}
        if rank.number == 0:
            for path in work.glob("rank-*.json"):
                path.unlink()
        elif not (there := _look(work, 0)) or first.items() - there.first.items():
            raise AmplifyError(
                f"{rank} is to do other work than rank 0, which has begun in {work.parent}. Give all the same "
                "command, the same version of this program, and inputs that are the same files on every machine: path, "
                "size, time of change. Or is that another build? Choose another output directory."
            )
        self._mine = _file(work, rank.number)
        with writing(work):
            try:
                with open(self._mine, "x") as file:
                    file.write(json.dumps(first | {"host": platform.node()}) + "\n")
            except FileExistsError:
                raise AmplifyError(
                    f"another build is writing this directory (its files are in {work.parent}), and has a rank "
                    f"{rank.number} already. Wait until it has ended, or choose another output directory."
                ) from None
        threading.Thread(target=self._go_on, daemon=True).start()

    def check(self) -> None:
        """AmplifyError if the build has failed elsewhere."""
        if self.trouble:
            raise AmplifyError(self.trouble)

    def wait(self) -> None:
        """Wait until all that have joined are ready."""
        while any(list(self._others.values())):
            self.check()
            time.sleep(SECONDS_BETWEEN_LOOKS / 5)
        self.check()

    def end(self, reason: str | None) -> None:
        """Say to the others that this rank is ready, or has failed."""
        self._stop.set()
        with suppress(OSError), open(self._mine, "r+") as file:  # not "a": what was removed must not come back
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(reason) + "\n")

    def _go_on(self) -> None:
        while not self.trouble and not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            try:
                os.utime(self._mine)
                for number in list(self._others):
                    self._look_at(number)
            except FileNotFoundError:
                self.trouble = f"{self._work} was removed: rank 0 of this build has ended, see its message."
            except OSError:  # of a network file system; if it stays, the others see no sign of us
                pass

    def _look_at(self, number: int) -> None:
        before, now = self._others[number], _look(self._work, number)
        if now and now.end:
            self.trouble = self.trouble or now.end[0]
            del self._others[number]
        elif now and now != before:
            self._others[number], self._silent[number] = now, 0
        elif self._silent[number] < SILENT_LOOKS:
            self._silent[number] += 1
        else:
            other = Rank(number, self._rank.world)
            self.trouble = (
                f"{other} has shown no sign of life on {before.first['host']} for {_patience()}: it was killed, or "
                "its machine was lost. What is complete is kept: run the same command again."
                if before
                else f"{other} has not begun after {_patience()}: it has failed, or its machine does not share "
                f"{self._work.parent.parent}. To work alone, unset RANK and WORLD_SIZE in the environment."
            )


def _begun(partial: Path) -> tuple[Path, int] | None:
    """Return the work directory of a build that has begun and not ended, and when rank 0 touched its file."""
    for file in partial.glob("work-*/rank-0.json"):
        seen = _look(file.parent, 0)
        if seen and seen.first["work"] == file.parent.name and not seen.end:
            return file.parent, seen.changed
    return None


def _look(work: Path, number: int) -> _Seen | None:
    try:
        with open(_file(work, number)) as file:  # opened, so that a network file system asks its server
            lines = [json.loads(line) for line in file if line.endswith("\n")]
            return _Seen(os.fstat(file.fileno()).st_mtime_ns, lines[0], lines[1:]) if lines else None
    except FileNotFoundError:
        return None


def _file(work: Path, number: int) -> Path:
    return work / f"rank-{number}.json"


def _patience() -> str:
    return f"{SILENT_LOOKS * SECONDS_BETWEEN_LOOKS:.0f} s"
