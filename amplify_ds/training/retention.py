"""Which checkpoints of a run stay: for the one process that holds the run's lock.

A checkpoint is *sound* once this process has read it and its checksums match: at the start, after writing it, or before
it counts as one of those to keep. Nothing is deleted unless `keep_last` sound ones are newer. A damaged one is renamed
to step-00000240.damaged: it is not used or counted any more, and it is the user's to delete. What this version did not
write (a newer format, a symbolic link, other names) or may not read is never touched or counted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.training import checkpoint
from amplify_ds.training.checkpoint import CheckpointFile, Damaged


class Checkpoints:
    """The checkpoints of a run whose lock this process holds. say: shows a line to the user.

    newest: the newest that is known to be sound, or None.
    """

    def __init__(self, run: Path, keep_last: int, keep_every: int, say: Callable[[str], None]):
        self.run, self.keep_last, self.keep_every, self.say = run, keep_last, keep_every, say
        self.newest: CheckpointFile | None = None
        self._sound: dict[Path, list | None] = {}  # what the files of a sound checkpoint were like when it was read
        self._damaged: list[tuple[Path, Damaged]] = []

    def find(self) -> CheckpointFile | None:
        """The newest sound checkpoint; None when there is none at all. Nothing on the disk is changed.

        Raises Damaged when all that exist are damaged, and Unsupported when one of another format is newer.
        """
        self._damaged = []
        for path in reversed(checkpoint.listing(self.run)):
            try:
                self.newest = checkpoint.open_verified(path)
            except Damaged as error:
                self._damaged.append((path, error))
                continue
            self._sound[path] = _signature(path)
            return self.newest
        if self._damaged:
            raise Damaged(
                "\n".join(str(error) for _, error in self._damaged)
                + f"\nNo checkpoint of {self.run} is sound. Restore one from a copy, or choose another --output to "
                "start again."
            )
        return None

    def set_damaged_aside(self) -> None:
        """Rename the damaged ones that `find` has passed over."""
        for path, error in self._damaged:
            self._set_aside(path, error)
        self._damaged = []

    def write(self, named_state: Iterable[tuple[str, torch.Tensor, dict]], state: dict[str, Any]) -> None:
        """Write a checkpoint, which becomes `newest`, and prune. AmplifyError if it cannot be written."""
        final = checkpoint.folder(self.run) / checkpoint.name_of(state["step"])
        if os.path.lexists(final):  # not there when the run began: somebody else's, or damaged since
            self._set_aside(final, f"{final}: was in the way of a new checkpoint.")
        self.newest = checkpoint.write(self.run, named_state, state)
        self._sound[final] = _signature(final)
        self.prune()

    def prune(self) -> None:
        """Delete all but the newest `keep_last` sound ones and those at multiples of `keep_every` steps (0: none).

        What cannot be deleted is named and stays.
        """
        kept = 0
        for step, path in reversed(checkpoint.by_step(self.run).items()):
            if path.is_symlink():
                continue
            if kept < self.keep_last:
                kept += self._is_sound(path)
            elif not (self.keep_every and step % self.keep_every == 0):
                self._delete(path)
        for path in checkpoint.folder(self.run).glob(".step-*"):  # what a killed write or deletion left behind
            shutil.rmtree(path, ignore_errors=True)

    def _is_sound(self, path: Path) -> bool:
        """Read it, unless it is as it was when it was read before; set it aside if it is damaged."""
        try:
            now = _signature(path)
            if now is None or self._sound.get(path) != now:
                checkpoint.open_verified(path)
                self._sound[path] = now
            return True
        except Damaged as error:
            self._set_aside(path, error)
        except (AmplifyError, OSError) as error:  # of another format, or not ours to read
            self.say(f"warning: {error} It is left where it is.")
        return False

    def _delete(self, path: Path) -> None:
        """Take the name away first: a half deleted directory must not look like a checkpoint."""
        try:
            checkpoint.open_checkpoint(path)  # of another format, or damaged: not ours to delete
            doomed = path.with_name(f".{path.name}.deleted")
            path.rename(doomed)
            shutil.rmtree(doomed)
        except Damaged as error:
            self._set_aside(path, error)
        except (AmplifyError, OSError) as error:
            self.say(f"warning: {path}: was not deleted: {error}")

    def _set_aside(self, path: Path, why: object) -> None:
        aside = path.with_name(path.name + checkpoint.SET_ASIDE)
        number = 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.name}{checkpoint.SET_ASIDE}-{number}")
        try:
            path.rename(aside)
            self.say(f"warning: {why} It is not used; it is now called {aside.name}, and may be deleted.")
        except OSError as error:
            self.say(f"warning: {why} It is not used, and could not be renamed to {aside.name}: {error.strerror}.")


def _signature(path: Path) -> list | None:
    """What changes when a checkpoint's files are replaced or written to; None where they cannot be looked at."""
    try:
        found = [(file.name, file.stat()) for file in path.iterdir()]
    except OSError:
        return None
    return sorted((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)
