"""Compare recipes by what they reach: `python -m amplify_ds.benchmark convergence`.

    published   the recipe `tiny` as it is: the published optimizer and schedule
    ours        the same with the settings of OURS, at the top of this module
    ours, half  ours with half the steps, its schedule ending there: the honest test of "in half the time"

All train on the bundled proteins with the same model, batch, budget and seeds, by the real training path: DeepSpeed's
launcher, ZeRO 1, one rank a core. A seed sets initial weights, order of the data and masks. Runs take turns, seed by
seed, so that the machine's moods meet all. Time is that of training steps alone, without start-up, evaluation and
checkpoints. Perplexity is that of the bundled validation proteins, every selected residue replaced by <mask>.

Every run has a directory of its own under --directory. Run the command again and it continues what was interrupted and
reuses what is complete. Another recipe is compared by a YAML file of settings:

  python -m amplify_ds.benchmark convergence --seeds 1 --contestant fast=fast.yaml
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from amplify_ds import bars
from amplify_ds.benchmarks import curves, training_runs
from amplify_ds.benchmarks.common import cores, gpus
from amplify_ds.benchmarks.prep import BUILD_SHARDS, EXAMPLES
from amplify_ds.config import RunConfig, resolve
from amplify_ds.errors import AmplifyError
from amplify_ds.extras import require
from amplify_ds.processes import sigterm_interrupts
from amplify_ds.shell import next_commands

RECIPE = "tiny"
OURS: dict[str, Any] = {  # what differs from the recipe
    "optimizer.kind": "normuon",
    "optimizer.lr": 6e-3,
    "optimizer.matrix_lr": 6e-3,
    "masking.fraction": 0.25,
}
HALF = ", half"
ROW_TOKENS, ROWS = 512, 8  # of a row; of a global batch, or the nearest number that the ranks can share
MOST_RANKS = 8
CAUTION = """\
Seconds: training steps alone, without start-up, evaluation and checkpoints.
The settings were tuned on this same validation set, whose proteins are relatives of the training proteins
(data_prep/example/README.md): what is gained here need not be gained elsewhere."""


class Contestant(NamedTuple):
    name: str
    file: str | None
    settings: dict[str, Any]
    share: float  # of the steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", type=int, default=3, metavar="N", help="runs of each contestant (default: 3)")
    add("--steps", type=int, default=1000, metavar="N", help="optimizer steps; all schedules end there (default: 1000)")
    add("--every", type=int, default=50, metavar="N", help="steps between evaluations (default: 50)")
    add(
        "--contestant",
        action="append",
        default=[],
        metavar="NAME=FILE.yaml",
        help="settings to compare instead of ours, as for --config of amplify_ds.train; may be given several times. "
        "Batch, steps, end of the decay and seed are those of the benchmark",
    )
    add(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also train each contestant but the published one for half the steps (default: yes)",
    )
    add("--ranks", type=int, metavar="N", help=f"default: one for each GPU, else for each core, at most {MOST_RANKS}")
    add(
        "--directory",
        type=Path,
        default=Path("runs/convergence"),
        metavar="DIR",
        help="shards and runs, kept and reused (default: %(default)s)",
    )
    add("--picture", type=Path, metavar="FILE.png", help="default: convergence.png in the directory")
    add("--markdown", type=Path, metavar="FILE", help="also write the table to a file")


def run(options: argparse.Namespace) -> None:
    if min(options.seeds, options.steps, options.every, options.ranks or 1) < 1 or options.steps == 1:
        raise AmplifyError("--seeds, --every and --ranks must be at least 1, --steps at least 2")
    require("matplotlib", "the picture of the curves")
    for file in filter(None, (options.picture, options.markdown)):
        if file.exists():
            raise AmplifyError(f"{file}: exists already; choose another name, or remove it first")
        if not file.absolute().parent.is_dir():
            raise AmplifyError(f"{file}: there is no directory {file.parent}; make it first")
    with sigterm_interrupts():
        found = _train(options)
    text = curves.table(found, options.seeds) + f"\n\n{CAUTION}"
    print(text)
    picture = options.picture or options.directory / "convergence.png"
    title = f"Recipe {RECIPE} on the bundled proteins, {_seeds(options.seeds)}"
    curves.draw(found, title, picture)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {options.markdown}")
    print(f"wrote {picture}\nruns: {options.directory}")
    print(next_commands(("tensorboard", "--logdir", options.directory)))


def _train(options: argparse.Namespace) -> dict[str, curves.Curve]:
    """Train what is not complete; {contestant: its curve over all seeds}."""
    place = options.directory.absolute()
    ranks = options.ranks or _ranks()
    contestants = {contestant.name: contestant for contestant in _contestants(options)}
    for contestant in contestants.values():  # what is wrong with a file is said before anything is made
        _config(contestant, options, ranks, place, 0)
    make_shards(place)
    runs = {
        (name, seed): (place / f"{name.replace(', ', '-')}-seed-{seed}", _config(one, options, ranks, place, seed))
        for seed in range(options.seeds)
        for name, one in contestants.items()
    }
    for folder, config in runs.values():
        training_runs.check(folder, config)
    steps = sum(config.training.steps for _, config in runs.values())
    found: dict[str, list[curves.Curve]] = {name: [] for name in contestants}
    with bars.bar(total=steps, unit="step") as bar:
        for (name, seed), (folder, config) in runs.items():
            bar.set_description(f"{name}, seed {seed}")
            training_runs.train(folder, config, RECIPE, ranks, lambda done: bar.update(done))
            found[name].append(curves.read(folder))
            bars.print_line(f"{name}, seed {seed}: {found[name][-1].describe()}")
    return {name: curves.join(each) for name, each in found.items()}


def _contestants(options: argparse.Namespace) -> list[Contestant]:
    found = [Contestant("published", None, {}, 1.0)]
    for text in options.contestant:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or not name.replace("-", "").replace("_", "").isalnum():
            raise AmplifyError(f"--contestant {text}: expected NAME=FILE.yaml, NAME of letters, digits, - and _")
        if name in (one.name for one in found):
            raise AmplifyError(f"--contestant {text}: there are two of the name {name}")
        found.append(Contestant(name, file, {}, 1.0))
    if not options.contestant:
        found.append(Contestant("ours", None, OURS, 1.0))
    halves = [one._replace(name=one.name + HALF, share=0.5) for one in found[1:]]
    return found + (halves if options.half else [])


def _config(contestant: Contestant, options: argparse.Namespace, ranks: int, place: Path, seed: int) -> RunConfig:
    steps = int(options.steps * contestant.share)
    rows = max(1, (ROWS + ranks // 2) // ranks)  # of a rank, as launch/quickstart.sh shares them out
    fixed = {
        "data.train": [str(place / "train")],
        "data.validation": [str(place / "validation")],
        "training.steps": steps,
        "optimizer.decay_steps": steps,
        "training.seed": seed,
        "training.micro_batch_rows": rows,
        "training.global_batch_tokens": ROW_TOKENS * rows * ranks,
        "evaluation.every": options.every,
    }
    return resolve(RECIPE, contestant.file, {**contestant.settings, **fixed})


def make_shards(place: Path) -> None:
    """Those of the quick start, of the bundled proteins; build_shards.py reuses what is complete."""
    if not EXAMPLES.is_dir():
        raise AmplifyError(f"there is no {EXAMPLES}: the benchmark needs the repository, not only the package")
    validation = EXAMPLES / "validation.fasta.gz"
    for name, more in (("validation", []), ("train", ["--exclude", validation])):
        words = [*BUILD_SHARDS, "--input", EXAMPLES / f"{name}.fasta.gz", *more]
        words += ["--output", place / name, "--max-length", ROW_TOKENS, "--row-tokens", ROW_TOKENS]
        done = subprocess.run([str(word) for word in words], text=True, capture_output=True)
        if done.returncode:
            raise AmplifyError(f"build_shards.py could not make {place / name}:\n{done.stderr.strip()}")


def _ranks() -> int:
    return gpus() or min(MOST_RANKS, cores())


def _seeds(count: int) -> str:
    return f"mean of {count} seeds, band from lowest to highest" if count > 1 else "one seed"
