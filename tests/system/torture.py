"""Kill a real run N times at random moments, resume it each time, and compare it with one that nobody disturbed.

Every start goes through launch/train.sh. It is ended by SIGKILL of a rank, of a process that prepares batches, of the
launcher on this node, of the runner, of everything, of everything while a checkpoint is being written, by SIGTERM or
SIGUSR1 to the script, or by a disk that is full at the next checkpoint (a limit on the size of files stands in for it),
at a random place of the start or of the next few steps; or everything is killed and then the newest checkpoint
damaged. Batches are prepared by the rank itself or by two processes. The first half of the starts are alike (two ranks,
ZeRO stage 1); after that each has a number of ranks (1, 2, 4) and a stage (0 to 3) drawn at random. In the end

    the rows that were read, masks included, are the same at every position of the stream,
    the losses are equal to the bit up to the first change of ranks or stage, and within 1e-5 after it,
    nothing was ever left running, and no checkpoint was lost but those that were damaged on purpose.
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
FULL = 270_000  # bytes: files of the run are smaller, those of a checkpoint larger
FEWEST_STEPS, STEPS_A_KILL, MOST_STEPS = 12, 9, 6  # of the run; more for each kill; read before one at most
GLOBAL_ROWS = 4
PATIENCE = 300


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/system/torture.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", nargs="?", type=int, default=30, metavar="N", help="times to kill it (default: 30)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments (default: another each time)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    place = Path(tempfile.mkdtemp(prefix="torture-"))
    print(f"{options.kills} kills, seed {seed}, in {place}", flush=True)
    torture = Torture(place, options.kills, random.Random(seed))
    torture.run()
    shutil.rmtree(place)
    return 0


class Torture:
    def __init__(self, place: Path, kills: int, chance: random.Random):
        self.place, self.kills, self.chance = place, kills, chance
        self.steps = FEWEST_STEPS + STEPS_A_KILL * kills
        self.shards = build_small_shards(place)
        self.start_seconds = 5.0
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        began = time.perf_counter()
        alone = self.start("undisturbed", 2, 1)
        self.wait_for_rows("undisturbed", 1)
        self.start_seconds = time.perf_counter() - began
        assert alone.wait(PATIENCE) == 0, self.log("undisturbed")
        changed_after, ways = None, []
        for number in range(self.kills):
            alike = number < (self.kills + 1) // 2
            ranks, stage = (2, 1) if alike else (self.chance.choice((1, 2, 4)), self.chance.choice((0, 1, 2, 3)))
            if (ranks, stage) != (2, 1) and changed_after is None:
                changed_after = self.newest()
            if number % len(WAYS) == 0:
                ways = self.chance.sample(WAYS, len(WAYS))
            self.kill_once(number, ways[number % len(WAYS)], ranks, stage)
        assert self.start("tortured", 2, 1).wait(PATIENCE) == 0, self.log("tortured")
        self.nothing_runs()
        self.compare(self.steps if changed_after is None else changed_after)

    def kill_once(self, number: int, way: str, ranks: int, stage: int) -> None:
        before, read = self.newest(), len(self.rows("tortured"))
        assert before < self.steps, "nothing is left to kill"
        workers = 2 if way == "a worker" else self.chance.choice((0, 2))
        script = self.start("tortured", ranks, stage, workers)
        steps = self.chance.randint(way == "a worker", MOST_STEPS)
        if way == "everything during a save":
            self.until(lambda: list(checkpoint.folder(self.place / "tortured").glob(".step-*.partial")), script)
        elif steps == 0:
            moment = time.monotonic() + self.chance.uniform(0, self.start_seconds)
            self.until(lambda: time.monotonic() > moment or len(self.rows("tortured")) > read, script)
        else:
            self.until(lambda: len(self.rows("tortured")) >= read + steps * GLOBAL_ROWS, script)
            time.sleep(self.chance.uniform(0, 0.05))
        code = self.end(script, way)
        self.nothing_runs()
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
        """Kill what `way` says; return the exit code of the launch script."""
        family = _family(script.pid)
        named = {
            "a rank": self.chance.sample(family["rank"], min(1, len(family["rank"]))),
            "a worker": self.chance.sample(family["worker"], min(1, len(family["worker"]))),
            "the launcher of this node": family["launcher"],
            "the runner": family["runner"],
        }
        if way in ("SIGTERM", "SIGUSR1"):
            script.send_signal(getattr(signal, way))
        elif way == "a full disk":
            for process in family["rank"]:
                try:
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL, FULL))
                except ProcessLookupError:
                    pass
        else:
            for process in named.get(way, [p for kind in family.values() for p in kind]) or [
                psutil.Process(script.pid)
            ]:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    pass
        code = script.wait(PATIENCE)
        if way in ("SIGTERM", "SIGUSR1"):
            assert code in (0, SAVED), f"{way}: exit code {code}\n{self.log('tortured')}"
        elif way in ("a worker", "a full disk") and code:
            expected = "data worker" if way == "a worker" else "could not be written"
            assert expected in self.log("tortured") or not family["rank"], self.log("tortured")
        return code

    def damage_newest(self) -> None:
        """Flip a bit of the newest checkpoint, or cut a file short, unless no other is sound."""
        sound = self.sound()
        if len(sound) < 2:
            return
        file = self.chance.choice(sorted(sound[-1].iterdir()))
        data = bytearray(file.read_bytes())
        if self.chance.random() < 0.5:
            del data[self.chance.randrange(len(data)) :]
        else:
            data[self.chance.randrange(len(data))] ^= 1 << self.chance.randrange(8)
        file.write_bytes(data)

    def sound(self) -> list[Path]:
        """The checkpoints of the tortured run that can be continued from, oldest first."""
        found = []
        for path in checkpoint.listing(self.place / "tortured"):
            try:
                found.append(checkpoint.verify(checkpoint.open_checkpoint(path)).path)
            except checkpoint.Damaged:
                pass
        return found

    def start(self, name: str, ranks: int, stage: int, workers: int = 0) -> subprocess.Popen:
        settings = {
            "training__steps": self.steps,
            "optimizer__decay_steps": self.steps,
            "optimizer__lr": 1e-3,
            "checkpoint__every": 2,
            "evaluation__max_rows": 1,
            "data__workers": workers,
        }
        training = training_words(self.place / name, self.shards, stage, **settings)
        words = ["bash", ROOT / "launch/train.sh", "--ranks", ranks, "--", *training]
        path = os.pathsep.join([str(ROOT / "tests/support/recording"), *filter(None, [os.environ.get("PYTHONPATH")])])
        extra = {"RECORD": str(self.place / f"{name}.rows"), "PYTHONPATH": path}
        with open(self.place / f"{name}.log", "w") as log:
            return subprocess.Popen([str(w) for w in words], env=environment(ranks) | extra, stdout=log, stderr=log)

    def compare(self, unchanged: int) -> None:
        expected, found = (dict(self.rows(name)) for name in ("undisturbed", "tortured"))
        needed = range(self.steps * GLOBAL_ROWS)
        assert all(position in expected and position in found for position in needed), "rows that were never read"
        assert set(self.rows("tortured")) == set(found.items()), "one position, different rows"
        assert {p: found[p] for p in needed} == {p: expected[p] for p in needed}, "another order of the data"
        alone, ours = losses(self.place / "undisturbed"), losses(self.place / "tortured")
        assert list(ours) == list(alone) == list(range(1, self.steps + 1)), "steps that were not logged, or twice"
        equal = [step for step in alone if step <= unchanged]
        assert all(ours[step] == alone[step] for step in equal), "losses that are not equal to the bit"
        difference = max((abs(ours[step] - alone[step]) for step in alone if step > unchanged), default=0.0)
        assert difference < 1e-5, f"losses that differ by {difference:.1e}"
        weights = [self.newest_of(name).weights() for name in ("undisturbed", "tortured")]
        apart = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
        assert apart < 1e-4, f"weights that differ by {apart:.1e}"
        print(
            f"the same {len(needed)} rows in the same order; losses equal to the bit over {len(equal)} steps, within "
            f"{difference:.1e} over the {self.steps - len(equal)} after ranks or stage changed"
        )
        print("survived: " + ", ".join(f"{count} × {kind}" for kind, count in sorted(self.counts.items())))

    def newest_of(self, name: str) -> checkpoint.CheckpointFile:
        found = checkpoint.newest(self.place / name)
        assert found is not None
        return found

    def newest(self) -> int:
        sound = self.sound()
        return (checkpoint.step_of(sound[-1]) or 0) if sound else 0

    def rows(self, name: str) -> list[tuple[int, str]]:
        """(position, digest) of every row read so far; a line cut short is not finished."""
        file = self.place / f"{name}.rows"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [(int(position), digest) for position, digest in map(str.split, lines)]

    def wait_for_rows(self, name: str, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.rows(name)) < count and time.monotonic() < deadline:
            time.sleep(0.02)

    def until(self, happened, script: subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened() and script.poll() is None:
            assert time.monotonic() < deadline, self.log("tortured")
            time.sleep(0.002)

    def nothing_runs(self) -> None:
        """Within a minute no process of the run is left, and its lock is free."""
        run, deadline = str(self.place / "tortured"), time.monotonic() + 90
        while left := [p for p in psutil.process_iter(["cmdline"]) if run in (p.info["cmdline"] or [])]:
            assert time.monotonic() < deadline, f"left running: {left}"
            time.sleep(0.1)
        while not self.lock_is_free():  # a dying process has no command line any more, and still its open files
            assert time.monotonic() < deadline, "something holds the run's lock"
            time.sleep(0.1)

    def lock_is_free(self) -> bool:
        if not (lock := self.place / "tortured/.lock").exists():
            return True
        try:
            with open(lock) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()


def _family(script: int) -> dict[str, list[psutil.Process]]:
    """What the launch script has started."""
    found: dict[str, list[psutil.Process]] = {"runner": [], "launcher": [], "rank": [], "worker": []}
    try:
        below = psutil.Process(script).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    for process in below:
        try:
            words, parent = process.cmdline(), process.ppid()
        except psutil.NoSuchProcess:
            continue
        if "deepspeed.launcher.launch" in words:
            found["launcher"].append(process)
        elif any(word.endswith("/deepspeed") for word in words):
            found["runner"].append(process)
        elif "amplify_ds.train" in words and words[1:3] == ["-u", "-m"]:  # not the guard of the launch script
            found["worker" if parent in [p.pid for p in found["rank"]] else "rank"].append(process)
    return found


def build_small_shards(place: Path) -> dict[str, Path]:
    for name in ("train", "validation"):
        words = ["--input", ROOT / f"data_prep/example/{name}.fasta.gz", "--output", place / name]
        words += ["--max-length", "96", "--row-tokens", "1024"]
        script = ROOT / "data_prep/build_shards.py"
        subprocess.run([sys.executable, script, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return {name: place / name for name in ("train", "validation")}


if __name__ == "__main__":
    sys.exit(main())
