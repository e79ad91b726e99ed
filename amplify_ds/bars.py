"""Progress bars on standard error, and lines beside them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands import it when there is something to show
    from tqdm import tqdm


def bar(iterable: Any = None, *, shown: bool = True, **options: Any) -> tqdm:
    """A bar on a terminal, as wide as that is now; nothing in a log. options: tqdm's.

    It is drawn ten times per second at most, in ASCII where the terminal's encoding has no blocks: tqdm's own rules.
    """
    from tqdm import tqdm

    return tqdm(iterable, disable=None if shown else True, dynamic_ncols=True, **options)


def say(text: str) -> None:
    """A line above whatever bar is shown."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
