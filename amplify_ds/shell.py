"""Commands that are printed to be pasted: paths with blanks and quotes in them must arrive as they are."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_line(*words: object) -> str:
    """A command for a POSIX shell: `python -m amplify_ds.plot 'my runs/first'`.

    Outside a clone of the repository, where there is no data_prep/NAME.py, it names the module that the script starts.
    """
    texts = [str(word) for word in words]
    if texts[0] == "python" and texts[1].startswith("data_prep/") and not Path(texts[1]).exists():
        texts[1:2] = ["-m", f"amplify_ds.{Path(texts[1]).stem}"]
    return shlex.join(texts)


def next_commands(*commands: tuple[object, ...]) -> str:
    """What a command prints at its end: a line `next: COMMAND` for each, given by its words."""
    return "\n".join(f"next: {command_line(*words)}" for words in commands)
