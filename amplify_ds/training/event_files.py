"""TensorBoard reads the event files of a run in the order of their names, which begin with the time of their start.

After a clock was set back, the file of a resumed run would be read before the one that it continues, and points that
were logged anew would be replaced by the old ones. So older files whose names come from the future are renamed first.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

NAME = re.compile(r"(events\.out\.tfevents\.)(\d{10})(\..+)")


def put_before_now(folder: Path) -> None:
    """Let every event file in `folder` have an earlier time in its name than now, in the same order as before."""
    latest = int(time.time())
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        if not (parts := NAME.fullmatch(path.name)):
            continue
        start, written, rest = parts.groups()
        latest = min(int(written), latest - 1)
        if latest != int(written):
            path.rename(path.with_name(f"{start}{latest:010d}{rest}"))
