"""Progress bars on standard error, and lines printed above them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands import it only when they show a bar
    from tqdm import tqdm


def bar(iterable: Any = None, *, shown: bool = True, **options: Any) -> tqdm:
    """Return a tqdm bar that follows the width of the terminal and shows nothing in a log. options: tqdm's.

    tqdm draws at most ten times per second, and in ASCII if the terminal's encoding has no block characters.
    """
    from tqdm import tqdm

    return tqdm(iterable, disable=None if shown else True, dynamic_ncols=True, **options)


def print_line(text: str) -> None:
    """Print a line to standard error, above any bar that is shown."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
