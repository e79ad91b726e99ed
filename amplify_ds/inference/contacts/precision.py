"""Precision of predicted contacts: of the L, L/2 and L/5 likeliest pairs, how many are in contact.

Ranges by separation along the chain, as CASP has them: short 6 to 11, medium 12 to 23, long 24 and more. L is the
number of residues with coordinates. Only pairs that are known are ranked; equals are ranked in the order of (i, j). L/k
is rounded down, and at least 1; where a protein has fewer pairs in a range than that, all are taken, and where it has
none its precision is nan and left out of the mean. One with pairs but no contact in a range counts as 0 there. Whether
the published figures treat L, short proteins and those without contacts in just this way is not known here; between
models compare numbers of this command. `chance` is the share of contacts among all pairs of the range: the
precision of a ranking that knows nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amplify_ds.inference.contacts.targets import known_pairs, observed

RANGES = {"short": (6, 11), "medium": (12, 23), "long": (24, None)}
FRACTIONS = {"L": 1, "L/2": 2, "L/5": 5}
COLUMNS = (*FRACTIONS, "chance")


def precisions(probability: np.ndarray, contacts: np.ndarray) -> dict[str, dict[str, float]]:
    """{range: {column: value}} for one protein; probability [n, n], contacts int8 [n, n]."""
    found = {}
    for name, (nearest, farthest) in RANGES.items():
        i, j = known_pairs(contacts, nearest, farthest)
        ranked = contacts[i, j][np.argsort(-probability[i, j], kind="stable")] == 1
        tops = [ranked[: max(1, observed(contacts) // divisor)] for divisor in FRACTIONS.values()]
        found[name] = {column: _mean(part) for column, part in zip(COLUMNS, [*tops, ranked])}
    return found


def summary(proteins: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """{range: {column: {mean, standard_error, proteins}}}; no error for one protein, no mean for none."""
    found: dict = {}
    for name in RANGES:
        for column in COLUMNS:
            values = np.array([protein[name][column] for protein in proteins])
            values = values[np.isfinite(values)]
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
            mean = float(values.mean()) if len(values) else None
            found.setdefault(name, {})[column] = {"mean": mean, "standard_error": error, "proteins": len(values)}
    return found


def table(found: dict) -> list[str]:
    """Lines for a person, from `summary`."""
    lines = ["  ".join(["range ", "separation", *(f"{column:<13}" for column in COLUMNS)]).rstrip()]
    for name, columns in found.items():
        nearest, farthest = RANGES[name]
        separation = f"{nearest} to {farthest}" if farthest else f"{nearest} and more"
        cells = [f"{_shown(columns[column]):<13}" for column in COLUMNS]
        lines.append("  ".join([f"{name:<6}", f"{separation:<10}", *cells]).rstrip())
    return lines


def _shown(value: dict) -> str:
    if value["mean"] is None:
        return "no pairs"
    error = "" if value["standard_error"] is None else f" ± {value['standard_error']:.3f}"
    return f"{value['mean']:.3f}{error}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
