"""Retention: which checkpoints of a run are kept, decided by the one process that holds the run's lock.

A checkpoint is *sound* once this process has read it and its checksums match: at the start, after writing it, or before
it counts as one to keep. A checkpoint is deleted only if `keep_last` sound ones are newer. A damaged one is renamed, as
in step-00000240.damaged; it is no longer used or counted, and the user may delete it. Anything that this version did
not write (a newer format, a symbolic link, other names) or may not read is neither touched nor counted.
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
    """The checkpoints of a run whose lock this process holds. print_line: prints a line for the user.

    newest: the newest checkpoint that is known to be sound, or None.
    """

    def __init__(self, run: Path, keep_last: int, keep_every: int, print_line: Callable[[str], None]):
        self.run, self.keep_last, self.keep_every, self.print_line = run, keep_last, keep_every, print_line
        self.newest: CheckpointFile | None = None
        self._sound: dict[Path, list | None] = {}  # signature of each sound checkpoint when it was read
        self._damaged: list[tuple[Path, Damaged]] = []

    def find(self) -> CheckpointFile | None:
        """Return the newest sound checkpoint, or None if there is no checkpoint. Nothing on disk changes.

        Raises Damaged if all checkpoints are damaged, and Unsupported if a newer one has another format.
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
        """Rename the damaged checkpoints that `find` has skipped."""
        for path, error in self._damaged:
            self._set_aside(path, error)
        self._damaged = []

    def write(self, named_state: Iterable[tuple[str, torch.Tensor, dict]], state: dict[str, Any]) -> None:
        """Write a checkpoint, which becomes `newest`, and prune. Raises AmplifyError if it cannot be written."""
        final = checkpoint.folder(self.run) / checkpoint.name_of(state["step"])
        if os.path.lexists(final):  # it appeared after the run began, or was damaged since then
            self._set_aside(final, f"{final}: exists already, and a new checkpoint needs this name.")
        self.newest = checkpoint.write(self.run, named_state, state)
        self._sound[final] = _signature(final)
        self.prune()

    def prune(self) -> None:
        """Delete all but the newest `keep_last` sound checkpoints and those at multiples of `keep_every` steps.

        keep_every 0 keeps no multiples. If a checkpoint cannot be deleted, a warning names it.
        """
        kept = 0
        for step, path in reversed(checkpoint.by_step(self.run).items()):
            if path.is_symlink():
                continue
            if kept < self.keep_last:
                kept += self._is_sound(path)
            elif not (self.keep_every and step % self.keep_every == 0):
                self._delete(path)
        for path in checkpoint.folder(self.run).glob(".step-*"):  # left by a write or deletion that was killed
            shutil.rmtree(path, ignore_errors=True)

    def _is_sound(self, path: Path) -> bool:
        """Return whether a checkpoint is sound. It is read again only if it has changed, and renamed if damaged."""
        try:
            now = _signature(path)
            if now is None or self._sound.get(path) != now:
                checkpoint.open_verified(path)
                self._sound[path] = now
            return True
        except Damaged as error:
            self._set_aside(path, error)
        except (AmplifyError, OSError) as error:  # another format, or no permission
            self.print_line(f"warning: {error} It is not touched.")
        return False

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint, renamed first so that a half deleted directory does not look like a checkpoint."""
        try:
            checkpoint.open_checkpoint(path)  # raises for another format or damage: these are kept
            doomed = path.with_name(f".{path.name}.deleted")
            path.rename(doomed)
            shutil.rmtree(doomed)
        except Damaged as error:
            self._set_aside(path, error)
        except (AmplifyError, OSError) as error:
            self.print_line(f"warning: {path}: could not be deleted: {error}")

    def _set_aside(self, path: Path, why: object) -> None:
        aside = path.with_name(path.name + checkpoint.SET_ASIDE)
        number = 1
        while os.path.lexists(aside):
            number += 1
            aside = path.with_name(f"{path.name}{checkpoint.SET_ASIDE}-{number}")
        try:
            path.rename(aside)
            self.print_line(f"warning: {why} It is not used. It was renamed to {aside.name} and may be deleted.")
        except OSError as error:
            self.print_line(
                f"warning: {why} It is not used. It could not be renamed to {aside.name}: {error.strerror}."
            )


def _signature(path: Path) -> list | None:
    """Return values that change if a checkpoint's files are replaced or modified; None if they cannot be read."""
    try:
        files = [(file.name, file.stat()) for file in path.iterdir()]
    except OSError:
        return None
    return sorted((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in files)
