"""Commands that are printed to be pasted: paths with blanks and quotes in them must arrive as they are."""

from __future__ import annotations

import shlex


def command_line(*words: object) -> str:
    """A command for a POSIX shell: `python -m amplify_ds.plot 'my runs/first'`."""
    return shlex.join(map(str, words))


def next_commands(*commands: tuple[object, ...]) -> str:
    """What a command prints at its end: a line `next: COMMAND` for each, given by its words."""
    return "\n".join(f"next: {command_line(*words)}" for words in commands)
