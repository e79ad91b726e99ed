"""The number of examples on which a property is tested."""

import os

from hypothesis import settings


def examples(few: int = 60):
    """Return a decorator for `few` examples, or the number in the environment (EXAMPLES=20000)."""
    return settings(max_examples=int(os.environ.get("EXAMPLES", few)), deadline=None)
