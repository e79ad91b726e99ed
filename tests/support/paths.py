"""Directories of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "data_prep/example"  # the bundled proteins
CASES = ROOT / "tests/cases"  # small input files as users have them
DATA_PREP = ROOT / "data_prep"
