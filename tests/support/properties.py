"""How many examples a property is tried with."""

import os

from hypothesis import settings


def examples(few: int = 60):
    """A decorator: few examples, or as many as the environment says (EXAMPLES=20000)."""
    return settings(max_examples=int(os.environ.get("EXAMPLES", few)), deadline=None)
