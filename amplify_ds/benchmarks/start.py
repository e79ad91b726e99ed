"""Measure the cost of resuming at a late step: `python -m amplify_ds.benchmark start`.

Sparse files stand in for large shards: only the rows that are read hold proteins. A new process opens them and makes
the batch of a late step, as one rank of a run does. Reading the manifest, checking every file and making the
batch with its masks are timed; imports are not. File names are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from amplify_ds.benchmarks.common import table
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.order import rows_at
from amplify_ds.data.shard_writer import write_manifest
from amplify_ds.data.shards import FORMAT, FORMAT_VERSION, Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import BOS, EOS, TOKENS, VOCABULARY_SHA256

ROW_TOKENS, WINDOW = 8192, 512
_GLOBAL_ROWS, _ROWS = 160, 10  # rows of the global batch and of one rank
_SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=float, default=16e6, metavar="N", help="rows in all shards (default: 16e6)")
    parser.add_argument("--shards", type=int, default=1000, metavar="N", help="number of shards (default: 1000)")
    parser.add_argument(
        "--step", type=int, default=900_000, metavar="S", help="step whose batch is made (default: 900000)"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    rows = int(options.rows) // options.shards
    if rows < 1 or options.step < 1:
        raise AmplifyError("--rows must be at least --shards, and --step at least 1")
    result = measure_in_new_process(options.shards, rows, options.step, options.directory)
    print(f"{rows * options.shards:,} rows of {ROW_TOKENS:,} tokens in {options.shards:,} shards, one rank")
    lines = [
        ("opened after", f"{result['opened']:.3f} s"),
        (f"one rank's batch of step {options.step:,} ready after", f"{result['seconds']:.3f} s"),
        ("memory added", f"{result['added'] / 1e6:.1f} MB"),
        ("  peak", f"{result['peak'] / 1e6:.1f} MB"),
        ("open files", str(result["files"])),
    ]
    print(table(lines))


def measure_in_new_process(shards: int, rows: int, step: int, directory: Path | None) -> dict:
    """Write `shards` sparse shards of `rows` rows each, and return what `measure` returns in a new process."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=directory) as temporary:
        read_rows = rows_at(_positions(step), rows * shards, _SEED)[1]
        make_sparse_shards(Path(temporary), shards, rows, read_rows)
        command = [sys.executable, "-m", "amplify_ds.benchmarks.start", temporary, str(step)]
        result = subprocess.run(command, text=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        if result.returncode:
            raise AmplifyError(
                f"the process that reads the shards ended with exit code {result.returncode}, see its message above"
            )
        return json.loads(result.stdout)


def make_sparse_shards(
    directory: Path, shards: int, rows: int, filled: np.ndarray, window: int = WINDOW, row_tokens: int = ROW_TOKENS
) -> None:
    """Write shards of `rows` rows, each row full of windows of `window` tokens.

    Only the rows `filled`, numbered across all shards, are written; the others are holes in the files.
    """
    windows = row_tokens // window
    rng = np.random.default_rng(0)
    protein = np.concatenate([[BOS], rng.integers(6, 26, window - 2), [EOS]])
    entries = []
    for number in range(shards):
        rows_here = filled[filled // rows == number] - number * rows
        files = {}
        shapes = {"tokens": (rows, row_tokens), "lengths": (rows * windows,), "row_starts": (rows + 1,)}
        for (kind, shape), dtype in zip(shapes.items(), ("u1", "<u2", "<i8")):
            path = directory / f"shard-{number:05d}.{kind}.npy"
            array = np.lib.format.open_memmap(path, "w+", dtype, shape)
            for row in rows_here.tolist():
                if kind == "tokens":
                    array[row] = np.tile(protein, windows)
                elif kind == "lengths":
                    array[row * windows : (row + 1) * windows] = window
                else:
                    array[row : row + 2] = row * windows, (row + 1) * windows
            files[path.name] = {"bytes": path.stat().st_size, "sha256": "0" * 64}
        entries.append({"rows": rows, "segments": rows * windows, "files": files})
    counts = np.bincount(protein, minlength=len(TOKENS)) * windows * rows * shards
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "vocabulary_sha256": VOCABULARY_SHA256,
        "max_length": window,
        "row_tokens": row_tokens,
        "counts": {"rows": rows * shards, "tokens": int(counts.sum())},
        "packing_efficiency": 1.0,
        "token_counts": counts.tolist(),
        "shards": entries,
    }
    write_manifest(directory, manifest)


def measure(directory: str, step: int) -> dict:
    """Open the shards and make one rank's batch of `step`. Return seconds, bytes of memory and open files."""
    from amplify_ds.data.loader import BatchSplit, TrainingBatches

    files_before, memory_before = len(os.listdir("/proc/self/fd")), _memory("VmRSS")
    began = time.perf_counter()
    mixture = Mixture([Source("train", 1, Shards(directory))])
    opened = time.perf_counter() - began
    split = BatchSplit(_GLOBAL_ROWS, _ROWS, 1, 0, _GLOBAL_ROWS // _ROWS)
    batch = TrainingBatches(mixture, split, _SEED, 0.15, 0.8, 0.1)[step - 1]
    seconds = time.perf_counter() - began
    assert batch.tokens == _ROWS * ROW_TOKENS
    return {
        "opened": opened,
        "seconds": seconds,
        "added": _memory("VmRSS") - memory_before,
        "peak": _memory("VmHWM") - memory_before,
        "files": len(os.listdir("/proc/self/fd")) - files_before,
    }


def _positions(step: int) -> np.ndarray:
    return (step - 1) * _GLOBAL_ROWS + np.arange(_ROWS)


def _memory(name: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
