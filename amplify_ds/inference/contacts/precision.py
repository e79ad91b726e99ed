"""Precision of predicted contacts: the share of contacts among the L, L/2 and L/5 most probable pairs.

Ranges by separation along the chain are those of CASP: short 6 to 11, medium 12 to 23, long 24 or more. L is the number
of residues with coordinates. Only known pairs are ranked; ties are ranked in the order of (i, j). L/k is rounded down,
and at least 1. A protein with fewer pairs in a range contributes all of them; with none, its precision is nan and left
out of the mean. A protein with pairs but no contact in a range has precision 0 there. We do not know whether published
figures treat L, short proteins and proteins without contacts in the same way, so compare models by numbers of this
command only. `chance` is the share of contacts among all pairs of the range: the precision of a random ranking.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amplify_ds.inference.contacts.targets import known_pairs, observed

RANGES = {"short": (6, 11), "medium": (12, 23), "long": (24, None)}
FRACTIONS = {"L": 1, "L/2": 2, "L/5": 5}
COLUMNS = (*FRACTIONS, "chance")


def precisions(probability: np.ndarray, contacts: np.ndarray) -> dict[str, dict[str, float]]:
    """Return {range: {column: value}} of one protein. probability: [n, n]. contacts: int8 [n, n]."""
    results = {}
    for name, (nearest, farthest) in RANGES.items():
        i, j = known_pairs(contacts, nearest, farthest)
        ranked = contacts[i, j][np.argsort(-probability[i, j], kind="stable")] == 1
        tops = [ranked[: max(1, observed(contacts) // divisor)] for divisor in FRACTIONS.values()]
        results[name] = {column: _mean(part) for column, part in zip(COLUMNS, [*tops, ranked])}
    return results


def summary(proteins: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return {range: {column: {mean, standard_error, proteins}}}.

    standard_error is None for fewer than two proteins, mean for none.
    """
    results: dict = {}
    for name in RANGES:
        for column in COLUMNS:
            values = np.array([protein[name][column] for protein in proteins])
            values = values[np.isfinite(values)]
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
            mean = float(values.mean()) if len(values) else None
            results.setdefault(name, {})[column] = {"mean": mean, "standard_error": error, "proteins": len(values)}
    return results


def table(results: dict) -> list[str]:
    """Return the lines of a text table. results: those of `summary`."""
    lines = ["  ".join(["range ", "separation", *(f"{column:<13}" for column in COLUMNS)]).rstrip()]
    for name, columns in results.items():
        nearest, farthest = RANGES[name]
        separation = f"{nearest} to {farthest}" if farthest else f"{nearest} or more"
        cells = [f"{_cell(columns[column]):<13}" for column in COLUMNS]
        lines.append("  ".join([f"{name:<6}", f"{separation:<10}", *cells]).rstrip())
    return lines


def _cell(value: dict) -> str:
    if value["mean"] is None:
        return "no pairs"
    error = "" if value["standard_error"] is None else f" ± {value['standard_error']:.3f}"
    return f"{value['mean']:.3f}{error}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
