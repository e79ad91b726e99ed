"""Train a toy model for thousands of steps and look whether anything grows: memory, descriptors, threads, files.

One rank with two processes that prepare batches, an evaluation and a checkpoint every 500 steps, one stop half way and
the same command again. At every checkpoint the rank and its workers are looked at from outside. At the end they must
have as many descriptors, threads and temporary files (those in shared memory too) as at step 1,000 and at most 3 % more
memory, and nothing may be left in shared memory.
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

EVERY, FIRST = 500, 1000  # steps between looks; the step that the end is compared with
MORE_MEMORY = 1.03
MEASURES = ("resident MiB", "descriptors", "threads", "processes", "temporary files")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=20_000, metavar="N", help="(default: %(default)s)")
    steps = parser.parse_args().steps
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    (place / "tmp").mkdir()
    before = set(os.listdir("/dev/shm"))
    seen = soak(place, build_small_shards(place), steps)
    left = sorted(set(os.listdir("/dev/shm")) - before)
    kept = sorted(os.listdir(place / "tmp"))  # torch makes a cache when it is imported
    print(f"left in the temporary directory: {kept or 'nothing'}; in shared memory: {left or 'nothing'}")
    early, late = seen[FIRST], seen[max(seen)]
    grown = [name for name in MEASURES[1:] if late[name] > early[name]]
    grown += ["memory"] * (late["resident MiB"] > MORE_MEMORY * early["resident MiB"])
    shutil.rmtree(place)
    print("grown: " + (", ".join(grown) or "nothing"))
    return 1 if grown or left else 0


def soak(place: Path, shards: dict[str, Path], steps: int) -> dict[int, dict[str, float]]:
    """{step: what the rank and its workers use} of the steps at which a checkpoint was seen."""
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
    words = launch_words(1, place / "run", shards, 1, **settings)
    seen: dict[int, dict[str, float]] = {}
    code, stop_at = SAVED, steps // 2
    while code == SAVED:
        with open(place / "log", "a") as log:
            variables = environment(1) | {"TMPDIR": str(place / "tmp")}
            rank = psutil.Popen(words, cwd=ROOT, env=variables, stdout=log, stderr=log)
        while rank.poll() is None:
            time.sleep(0.05)
            paths = checkpoint.listing(place / "run")
            step = (checkpoint.step_of(paths[-1]) if paths else None) or 0
            if step >= FIRST and step % EVERY == 0 and step < steps and step not in seen:
                time.sleep(0.2)  # past the evaluation and the save
                seen[step] = look_at(rank, place / "tmp")
                print(
                    f"step {step:>6}: " + ", ".join(f"{value:g} {name}" for name, value in seen[step].items()),
                    flush=True,
                )
            if stop_at and step >= stop_at:
                stop_at = 0
                rank.send_signal(signal.SIGTERM)
        code = rank.returncode
    assert code == 0, (place / "log").read_text()
    return seen


def look_at(rank: psutil.Process, temporary: Path) -> dict[str, float]:
    family = [rank, *rank.children(recursive=True)]
    memory = sum(process.memory_info().rss for process in family) / 2**20
    counts = (sum(process.num_fds() for process in family), sum(process.num_threads() for process in family))
    files = sum(1 for folder in (temporary, Path("/dev/shm")) for _ in folder.rglob("*"))
    return dict(zip(MEASURES, (round(memory), *counts, len(family), files)))


if __name__ == "__main__":
    sys.exit(main())
