"""Run commands of all kinds, and what is recorded of a replayed batch."""

import json

from tests.support.commands import environment, python
from tests.support.paths import ROOT
from tests.support.recorded import digest


def commands(asked: dict[str, dict]) -> dict[str, dict]:
    """Run commands one after another. asked: {name: {"words": as after `python`, and perhaps "signal" or "flags" as
    probing/sitecustomize.py has it}}; returns {name: {"code", "out", "err"}}.
    """
    found = {}
    for name, command in asked.items():
        probe = {key: value for key, value in command.items() if key != "words"}
        own = {"PYTHONPATH": str(ROOT / "tests/support/probing"), "PROBE": json.dumps(probe)} if probe else {}
        result = python(*command["words"], env=environment(1) | {"OMP_NUM_THREADS": "1"} | own)
        found[name] = {"code": result.returncode, "out": result.stdout, "err": result.stderr}
    return found


def replayed(batch: dict) -> dict:
    """A line for the batch and one for each row: where it is from, how much it holds, and a digest of all of it."""
    found = {"batch": digest(batch)}
    for row in batch["rows"]:
        whence = f"{row['source']} {row['row']}, epoch {row['epoch']}"
        found[f"row {row['number']}"] = f"{whence}: {row['tokens']} tokens, {row['targets']} targets, {digest(row)}"
    return found
