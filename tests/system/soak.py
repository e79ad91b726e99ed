"""Train a toy model for thousands of steps and check that memory, descriptors, threads and files do not grow.

One rank with two processes that prepare batches, an evaluation and a checkpoint every 500 steps, and one stop half way,
after which the run is resumed. Resources of the rank and its workers are measured at every checkpoint. At the end,
descriptors, threads and temporary files (including shared memory) must not exceed those at step 1,000, memory may be
3 % larger, and nothing may be left in shared memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from amplify_ds.training import checkpoint
from amplify_ds.training.stopping import SAVED
from tests.support.commands import environment
from tests.support.paths import ROOT
from tests.support.training import launch_words
from tests.system.torture import build_small_shards

EVERY, FIRST = 500, 1000  # steps between measurements; step of the first one, with which the last is compared
MORE_MEMORY = 1.03
MEASURES = ("resident MiB", "descriptors", "threads", "processes", "temporary files")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=20_000, metavar="N", help="(default: %(default)s)")
    steps = parser.parse_args().steps
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    (directory / "tmp").mkdir()
    before = set(os.listdir("/dev/shm"))
    measured = soak(directory, build_small_shards(directory), steps)
    left = sorted(set(os.listdir("/dev/shm")) - before)
    temporary = sorted(os.listdir(directory / "tmp"))  # torch creates a cache when it is imported
    print(f"left in the temporary directory: {temporary or 'nothing'}; in shared memory: {left or 'nothing'}")
    early, late = measured[FIRST], measured[max(measured)]
    grown = [name for name in MEASURES[1:] if late[name] > early[name]]
    grown += ["memory"] * (late["resident MiB"] > MORE_MEMORY * early["resident MiB"])
    shutil.rmtree(directory)
    print("grown: " + (", ".join(grown) or "nothing"))
    return 1 if grown or left else 0


def soak(directory: Path, shards: dict[str, Path], steps: int) -> dict[int, dict[str, float]]:
    """Train to the end and return {step of a checkpoint: resources used by the rank and its workers}."""
    settings = {
        "training__steps": steps,
        "optimizer__decay_steps": steps,
        "optimizer__lr": 1e-3,
        "data__workers": 2,
        "model__hidden_size": 16,
        "model__intermediate_size": 24,
        "training__global_batch_tokens": 1024,
        "evaluation__every": EVERY,
        "checkpoint__every": EVERY,
        "log__every": 10,
    }
    command = launch_words(1, directory / "run", shards, 1, **settings)
    measured: dict[int, dict[str, float]] = {}
    code, stop_at = SAVED, steps // 2
    while code == SAVED:
        with open(directory / "log", "a") as log:
            variables = environment(1) | {"TMPDIR": str(directory / "tmp")}
            rank = psutil.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
        while rank.poll() is None:
            time.sleep(0.05)
            paths = checkpoint.listing(directory / "run")
            step = (checkpoint.step_of(paths[-1]) if paths else None) or 0
            if step >= FIRST and step % EVERY == 0 and step < steps and step not in measured:
                time.sleep(0.2)  # after the evaluation and the save
                measured[step] = measure(rank, directory / "tmp")
                print(
                    f"step {step:>6}: " + ", ".join(f"{value:g} {name}" for name, value in measured[step].items()),
                    flush=True,
                )
            if stop_at and step >= stop_at:
                stop_at = 0
                rank.send_signal(signal.SIGTERM)
        code = rank.returncode
    assert code == 0, (directory / "log").read_text()
    return measured


def measure(rank: psutil.Process, temporary: Path) -> dict[str, float]:
    processes = [rank, *rank.children(recursive=True)]
    memory = sum(process.memory_info().rss for process in processes) / 2**20
    counts = (sum(process.num_fds() for process in processes), sum(process.num_threads() for process in processes))
    files = sum(1 for folder in (temporary, Path("/dev/shm")) for _ in folder.rglob("*"))
    return dict(zip(MEASURES, (round(memory), *counts, len(processes), files)))


if __name__ == "__main__":
    sys.exit(main())
