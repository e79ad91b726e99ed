"""Steps of contestants that take turns, and shards whose windows have exactly one length."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds import bars
from amplify_ds.benchmarks.start import make_sparse_shards
from amplify_ds.benchmarks.train import ask


class Measured(NamedTuple):
    """Of the median step of all ranks together; memory: the largest peak of a rank, in bytes."""

    seconds: float
    residues: float
    flops: float
    memory: float
    communication: float  # share of a further step whose parts are timed


def measure(cases: dict, turns: int, name: str) -> dict:
    """{case: Measured}. cases: the processes of each, which take turns and are ended."""
    steps: dict = {case: [] for case in cases}
    found = {}
    try:
        for processes in cases.values():  # begin together: ranks meet
            [process.wait() for process in processes]
        with bars.bar(total=(turns + 1) * len(cases), unit="step", desc=name) as bar:
            for _ in range(turns + 1):
                for case, processes in cases.items():
                    steps[case].append(ask(processes, "step"))
                    bar.update()
        for case, processes in cases.items():
            parts = [one["communication"] / sum(one.values()) for one in ask(processes, "parts")]
            memory = max(one["memory"] for one in ask(processes, "memory"))
            taken = steps[case][1:]  # the first warms up
            seconds = float(np.median([max(one["seconds"] for one in said) for said in taken]))
            residues, flops = (np.mean([sum(one[x] for one in said) for said in taken]) for x in ("residues", "flops"))
            found[case] = Measured(seconds, float(residues), float(flops), memory, float(np.mean(parts)))
    finally:
        for processes in cases.values():
            [process.end() for process in processes]
    return found


def exact_windows(place: Path, window: int, row_tokens: int) -> Path:
    """A few rows, full of windows of exactly `window` tokens."""
    shards = place / f"windows-{window}-{row_tokens}"
    if not shards.exists():
        shards.mkdir()
        make_sparse_shards(shards, 1, 8, np.arange(8), window, row_tokens)
    return shards
