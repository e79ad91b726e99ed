"""Results of commands and digests of replayed batches, for recorded tests."""

import json

from tests.support.commands import environment, python
from tests.support.paths import ROOT
from tests.support.recorded import digest


def commands(cases: dict[str, dict]) -> dict[str, dict]:
    """Run commands one after another and return {name: {"code", "out", "err"}}.

    cases: {name: {"words": arguments of `python`, optionally "signal" or "flags" as in probing/sitecustomize.py}}.
    """
    results = {}
    for name, command in cases.items():
        probe = {key: value for key, value in command.items() if key != "words"}
        variables = {"PYTHONPATH": str(ROOT / "tests/support/probing"), "PROBE": json.dumps(probe)} if probe else {}
        result = python(*command["words"], env=environment(1) | {"OMP_NUM_THREADS": "1"} | variables)
        results[name] = {"code": result.returncode, "out": result.stdout, "err": result.stderr}
    return results


def replayed(batch: dict) -> dict:
    """Return a digest of the batch and, for each row, its origin, its numbers of tokens and targets, and a digest."""
    lines = {"batch": digest(batch)}
    for row in batch["rows"]:
        origin = f"{row['source']} {row['row']}, epoch {row['epoch']}"
        lines[f"row {row['number']}"] = f"{origin}: {row['tokens']} tokens, {row['targets']} targets, {digest(row)}"
    return lines
