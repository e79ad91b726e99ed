"""Keep TensorBoard's event files in order if the clock was set back.

TensorBoard reads the event files of a run in the order of their names, which contain the time when they were opened.
After a clock was set back, the file of a resumed run would be read before the one that it continues, and old points
would replace the new ones. Older files whose names are in the future are therefore renamed.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

NAME = re.compile(r"(events\.out\.tfevents\.)(\d{10})(\..+)")


def put_before_now(folder: Path) -> None:
    """Rename the event files in `folder` so that all names have times before now, in the same order."""
    latest = int(time.time())
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        if not (parts := NAME.fullmatch(path.name)):
            continue
        prefix, seconds, suffix = parts.groups()
        latest = min(int(seconds), latest - 1)
        if latest != int(seconds):
            path.rename(path.with_name(f"{prefix}{latest:010d}{suffix}"))
