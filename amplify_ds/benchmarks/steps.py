"""Measure steps of several contestants in turns, and make shards whose windows all have one length."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds import bars
from amplify_ds.benchmarks.start import make_sparse_shards
from amplify_ds.benchmarks.train import call


class Measured(NamedTuple):
    """The median step, over all ranks."""

    seconds: float
    residues: float
    flops: float
    memory: float  # largest peak of a rank, in bytes
    communication: float  # share of the time of one more step, whose parts are timed


def measure(cases: dict, turns: int, name: str) -> dict:
    """Return {case: Measured} of `turns` steps after a warm-up. `cases`: {case: its processes}; they are ended."""
    steps: dict = {case: [] for case in cases}
    results = {}
    try:
        for processes in cases.values():  # all were started before: ranks wait for each other
            [process.wait() for process in processes]
        with bars.bar(total=(turns + 1) * len(cases), unit="step", desc=name) as bar:
            for _ in range(turns + 1):
                for case, processes in cases.items():
                    steps[case].append(call(processes, "step"))
                    bar.update()
        for case, processes in cases.items():
            shares = [seconds["communication"] / sum(seconds.values()) for seconds in call(processes, "parts")]
            memory = max(rank["memory"] for rank in call(processes, "memory"))
            measured = steps[case][1:]  # the first step is a warm-up
            seconds = float(np.median([max(rank["seconds"] for rank in ranks) for ranks in measured]))
            residues, flops = (
                np.mean([sum(rank[x] for rank in ranks) for ranks in measured]) for x in ("residues", "flops")
            )
            results[case] = Measured(seconds, float(residues), float(flops), memory, float(np.mean(shares)))
    finally:
        for processes in cases.values():
            [process.end() for process in processes]
    return results


def exact_windows(directory: Path, window: int, row_tokens: int) -> Path:
    """Return the path of shards in `directory` whose rows are full of windows of exactly `window` tokens."""
    shards = directory / f"windows-{window}-{row_tokens}"
    if not shards.exists():
        shards.mkdir()
        make_sparse_shards(shards, 1, 8, np.arange(8), window, row_tokens)
    return shards
