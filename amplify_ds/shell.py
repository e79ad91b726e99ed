"""Commands that users can paste into a shell, with paths quoted where necessary."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_line(*arguments: object) -> str:
    """Return a command for a POSIX shell, such as `python -m amplify_ds.plot 'my runs/first'`.

    Outside a clone of the repository, data_prep/NAME.py becomes the module that this script runs.
    """
    command = [str(argument) for argument in arguments]
    if command[0] == "python" and command[1].startswith("data_prep/") and not Path(command[1]).exists():
        command[1:2] = ["-m", f"amplify_ds.{Path(command[1]).stem}"]
    return shlex.join(command)


def next_commands(*commands: tuple[object, ...]) -> str:
    """Return one line `next: COMMAND` for each command, to be printed when a command has succeeded."""
    return "\n".join(f"next: {command_line(*command)}" for command in commands)
