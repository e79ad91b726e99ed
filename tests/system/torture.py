"""Kill a real run N times at random moments, resume it each time, and compare it with an uninterrupted run.

Every start goes through launch/train.sh. At a random moment of the start or of the next few steps it is ended by one
of: SIGKILL to a rank, to a process that prepares batches, to the launcher on this node, to the runner, to everything,
or to everything during a save; SIGTERM or SIGUSR1 to the script; a full disk at the next checkpoint (simulated by a
limit on file size); SIGKILL to everything and damage to the newest checkpoint. Batches are prepared by the rank itself
or by two processes. The first half of the starts have two ranks and ZeRO stage 1; each later one has a random number of
ranks (1, 2, 4) and a random stage (0 to 3). Checks that

    the rows read, masks included, are the same at every position of the stream,
    the losses are bitwise equal up to the first change of ranks or stage, and within 1e-5 after it,
    no process was left running, and no checkpoint was lost except those damaged on purpose.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from amplify_ds.training import checkpoint
from amplify_ds.training.stopping import SAVED
from tests.support.commands import environment
from tests.support.paths import ROOT
from tests.support.training import losses, training_words

WAYS = (
    "a rank",
    "a worker",
    "the launcher of this node",
    "the runner",
    "everything",
    "everything during a save",
    "SIGTERM",
    "SIGUSR1",
    "a full disk",
    "a damaged checkpoint",
)
FULL = 270_000  # limit on file size in bytes: files of the run are smaller, those of a checkpoint larger
FEWEST_STEPS, STEPS_PER_KILL = 12, 9  # steps of the run: a minimum, and more for each kill
MOST_STEPS = 6  # before a kill
GLOBAL_ROWS = 4
TIMEOUT = 300  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/system/torture.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", nargs="?", type=int, default=30, metavar="N", help="number of kills (default: 30)")
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of the random choices (default: a new one each time)"
    )
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    directory = Path(tempfile.mkdtemp(prefix="torture-"))
    print(f"{options.kills} kills, seed {seed}, in {directory}", flush=True)
    torture = Torture(directory, options.kills, random.Random(seed))
    torture.run()
    shutil.rmtree(directory)
    return 0


class Torture:
    def __init__(self, directory: Path, kills: int, rng: random.Random):
        self.directory, self.kills, self.rng = directory, kills, rng
        self.steps = FEWEST_STEPS + STEPS_PER_KILL * kills
        self.shards = build_small_shards(directory)
        self.start_seconds = 5.0
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        began = time.perf_counter()
        uninterrupted = self.start("uninterrupted", 2, 1)
        self.wait_for_rows("uninterrupted", 1)
        self.start_seconds = time.perf_counter() - began
        assert uninterrupted.wait(TIMEOUT) == 0, self.log("uninterrupted")
        changed_after, ways = None, []
        for number in range(self.kills):
            first_half = number < (self.kills + 1) // 2
            ranks, stage = (2, 1) if first_half else (self.rng.choice((1, 2, 4)), self.rng.choice((0, 1, 2, 3)))
            if (ranks, stage) != (2, 1) and changed_after is None:
                changed_after = self.newest()
            if number % len(WAYS) == 0:
                ways = self.rng.sample(WAYS, len(WAYS))
            self.kill_once(number, ways[number % len(WAYS)], ranks, stage)
        assert self.start("killed", 2, 1).wait(TIMEOUT) == 0, self.log("killed")
        self.wait_until_nothing_runs()
        self.compare(self.steps if changed_after is None else changed_after)

    def kill_once(self, number: int, way: str, ranks: int, stage: int) -> None:
        before, read = self.newest(), len(self.rows("killed"))
        assert before < self.steps, "the run is already complete"
        workers = 2 if way == "a worker" else self.rng.choice((0, 2))
        script = self.start("killed", ranks, stage, workers)
        steps = self.rng.randint(way == "a worker", MOST_STEPS)
        if way == "everything during a save":
            self.wait_until(lambda: list(checkpoint.folder(self.directory / "killed").glob(".step-*.partial")), script)
        elif steps == 0:
            moment = time.monotonic() + self.rng.uniform(0, self.start_seconds)
            self.wait_until(lambda: time.monotonic() > moment or len(self.rows("killed")) > read, script)
        else:
            self.wait_until(lambda: len(self.rows("killed")) >= read + steps * GLOBAL_ROWS, script)
            time.sleep(self.rng.uniform(0, 0.05))
        code = self.end(script, way)
        self.wait_until_nothing_runs()
        if way == "a damaged checkpoint":
            self.damage_newest()
        self.counts[way] += 1
        self.counts["with workers"] += workers > 0
        print(
            f"{number + 1:>3}  {ranks} ranks, stage {stage}, {workers} workers: {way} after "
            f"{'' if steps else 'some of '}the start, "
            f"checkpoint {before} -> {self.newest()} of {self.steps}, exit code {code}",
            flush=True,
        )

    def end(self, script: subprocess.Popen, way: str) -> int:
        """End the run in the given way. Return the exit code of the launch script."""
        by_kind = _processes(script.pid)
        targets = {
            "a rank": self.rng.sample(by_kind["rank"], min(1, len(by_kind["rank"]))),
            "a worker": self.rng.sample(by_kind["worker"], min(1, len(by_kind["worker"]))),
            "the launcher of this node": by_kind["launcher"],
            "the runner": by_kind["runner"],
        }
        if way in ("SIGTERM", "SIGUSR1"):
            script.send_signal(getattr(signal, way))
        elif way == "a full disk":
            for process in by_kind["rank"]:
                try:
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL, FULL))
                except ProcessLookupError:
                    pass
        else:
            for process in targets.get(way, [p for kind in by_kind.values() for p in kind]) or [
                psutil.Process(script.pid)
            ]:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
        code = script.wait(TIMEOUT)
        if way in ("SIGTERM", "SIGUSR1"):
            assert code in (0, SAVED), f"{way}: exit code {code}\n{self.log('killed')}"
        elif way in ("a worker", "a full disk") and code:
            expected = "data worker" if way == "a worker" else "could not be written"
            assert expected in self.log("killed") or not by_kind["rank"], self.log("killed")
        return code

    def damage_newest(self) -> None:
        """Flip a bit of the newest checkpoint or truncate a file, if another checkpoint is valid."""
        valid = self.valid_checkpoints()
        if len(valid) < 2:
            return
        file = self.rng.choice(sorted(valid[-1].iterdir()))
        data = bytearray(file.read_bytes())
        if self.rng.random() < 0.5:
            del data[self.rng.randrange(len(data)) :]
        else:
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        file.write_bytes(data)

    def valid_checkpoints(self) -> list[Path]:
        """Return the valid checkpoints of the killed run, oldest first."""
        paths = []
        for path in checkpoint.listing(self.directory / "killed"):
            try:
                paths.append(checkpoint.verify(checkpoint.open_checkpoint(path)).path)
            except checkpoint.Damaged:
                pass
        return paths

    def start(self, name: str, ranks: int, stage: int, workers: int = 0) -> subprocess.Popen:
        settings = {
            "training__steps": self.steps,
            "optimizer__decay_steps": self.steps,
            "optimizer__lr": 1e-3,
            "checkpoint__every": 2,
            "evaluation__max_rows": 1,
            "data__workers": workers,
        }
        training = training_words(self.directory / name, self.shards, stage, **settings)
        command = ["bash", ROOT / "launch/train.sh", "--ranks", ranks, "--", *training]
        path = os.pathsep.join([str(ROOT / "tests/support/recording"), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"RECORD": str(self.directory / f"{name}.rows"), "PYTHONPATH": path}
        with open(self.directory / f"{name}.log", "w") as log:
            return subprocess.Popen(
                [str(w) for w in command], env=environment(ranks) | variables, stdout=log, stderr=log
            )

    def compare(self, unchanged: int) -> None:
        """Compare both runs. `unchanged`: the last step before the first change of ranks or stage."""
        expected, actual = (dict(self.rows(name)) for name in ("uninterrupted", "killed"))
        needed = range(self.steps * GLOBAL_ROWS)
        assert all(position in expected and position in actual for position in needed), "some rows were never read"
        assert set(self.rows("killed")) == set(actual.items()), "different rows at the same position"
        assert {p: actual[p] for p in needed} == {p: expected[p] for p in needed}, "the order of the data differs"
        expected_losses, actual_losses = losses(self.directory / "uninterrupted"), losses(self.directory / "killed")
        steps = list(range(1, self.steps + 1))
        assert list(actual_losses) == list(expected_losses) == steps, "steps were logged twice or not at all"
        equal = [step for step in steps if step <= unchanged]
        differences = {step: abs(actual_losses[step] - expected_losses[step]) for step in steps}
        assert not any(differences[step] for step in equal), "losses are not bitwise equal"
        difference = max((differences[step] for step in steps if step > unchanged), default=0.0)
        assert difference < 1e-5, f"losses differ by {difference:.1e}"
        weights = [self.newest_of(name).weights() for name in ("uninterrupted", "killed")]
        weight_difference = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
        assert weight_difference < 1e-4, f"weights differ by {weight_difference:.1e}"
        print(
            f"the same {len(needed)} rows in the same order; losses bitwise equal over {len(equal)} steps, within "
            f"{difference:.1e} over {self.steps - len(equal)} steps after ranks or stage changed"
        )
        print("survived: " + ", ".join(f"{count} × {kind}" for kind, count in sorted(self.counts.items())))

    def newest_of(self, name: str) -> checkpoint.CheckpointFile:
        newest = checkpoint.newest(self.directory / name)
        assert newest is not None
        return newest

    def newest(self) -> int:
        valid = self.valid_checkpoints()
        return (checkpoint.step_of(valid[-1]) or 0) if valid else 0

    def rows(self, name: str) -> list[tuple[int, str]]:
        """Return (position, digest) of every row read so far, without an unfinished last line."""
        file = self.directory / f"{name}.rows"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(int(position), digest) for position, digest in map(str.split, lines)]

    def wait_for_rows(self, name: str, count: int) -> None:
        deadline = time.monotonic() + TIMEOUT
        while len(self.rows(name)) < count and time.monotonic() < deadline:
            time.sleep(0.02)

    def wait_until(self, condition, script: subprocess.Popen) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition() and script.poll() is None:
            assert time.monotonic() < deadline, self.log("killed")
            time.sleep(0.002)

    def wait_until_nothing_runs(self) -> None:
        """Wait until no process of the run is left and its lock is free, at most 90 seconds."""
        run, deadline = str(self.directory / "killed"), time.monotonic() + 90
        while running := [p for p in psutil.process_iter(["cmdline"]) if run in (p.info["cmdline"] or [])]:
            assert time.monotonic() < deadline, f"still running: {running}"
            time.sleep(0.1)
        while not self.lock_is_free():  # an exiting process has no command line, but still has open files
            assert time.monotonic() < deadline, "the lock of the run is still held"
            time.sleep(0.1)

    def lock_is_free(self) -> bool:
        if not (lock := self.directory / "killed/.lock").exists():
            return True
        try:
            with open(lock) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()


def _processes(script: int) -> dict[str, list[psutil.Process]]:
    """Return the processes that the launch script started, by kind."""
    by_kind: dict[str, list[psutil.Process]] = {"runner": [], "launcher": [], "rank": [], "worker": []}
    try:
        children = psutil.Process(script).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    for process in children:
        try:
            command, parent = process.cmdline(), process.ppid()
        except psutil.NoSuchProcess:
            continue
        if "deepspeed.launcher.launch" in command:
            by_kind["launcher"].append(process)
        elif any(argument.endswith("/deepspeed") for argument in command):
            by_kind["runner"].append(process)
        elif "amplify_ds.train" in command and command[1:3] == ["-u", "-m"]:  # not the guard of the launch script
            by_kind["worker" if parent in [p.pid for p in by_kind["rank"]] else "rank"].append(process)
    return by_kind


def build_small_shards(directory: Path) -> dict[str, Path]:
    for name in ("train", "validation"):
        arguments = ["--input", ROOT / f"data_prep/example/{name}.fasta.gz", "--output", directory / name]
        arguments += ["--max-length", "96", "--row-tokens", "1024"]
        script = ROOT / "data_prep/build_shards.py"
        subprocess.run([sys.executable, script, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return {name: directory / name for name in ("train", "validation")}


if __name__ == "__main__":
    sys.exit(main())
