"""Compare recipes by the validation perplexity they reach: `python -m amplify_ds.benchmark convergence`.

    published   the recipe `tiny` as it is: the published optimizer and schedule
    ours        the same with the settings of OURS, at the top of this module
    ours, half  ours with half the steps and a schedule that ends there: shows whether half the time is enough

All contestants train on the bundled proteins with the same model, batch, budget and seeds, through the real training
path: DeepSpeed's launcher, ZeRO 1, one rank per core. A seed sets the initial weights, the order of the data and the
masks. Contestants alternate within each seed, so that changes of the machine's speed affect all of them. Time counts
training steps only, without start-up, evaluation and checkpoints. Perplexity is measured on the bundled validation
proteins, with every selected residue replaced by <mask>.

Each run has its own directory under --directory. The same command continues interrupted runs and reuses complete ones.
To compare another recipe, give a YAML file of settings:

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
OURS: dict[str, Any] = {  # differences from the recipe
    "optimizer.kind": "normuon",
    "optimizer.lr": 6e-3,
    "optimizer.matrix_lr": 6e-3,
    "masking.fraction": 0.25,
}
HALF = ", half"
ROW_TOKENS = 512
ROWS = 8  # per global batch, or the nearest number that the ranks can share
MOST_RANKS = 8
CAUTION = """\
Seconds: training steps only, without start-up, evaluation and checkpoints.
The settings were tuned on this same validation set, whose proteins are relatives of the training proteins
(data_prep/example/README.md): the gain may not carry over to other data."""


class Contestant(NamedTuple):
    """A recipe to compare: settings of a YAML file, then `settings`; it trains for the fraction `share` of --steps."""

    name: str
    file: str | None
    settings: dict[str, Any]
    share: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seeds", type=int, default=3, metavar="N", help="runs of each contestant (default: 3)")
    add(
        "--steps",
        type=int,
        default=1000,
        metavar="N",
        help="optimizer steps, also the end of every schedule (default: 1000)",
    )
    add("--every", type=int, default=50, metavar="N", help="steps between evaluations (default: 50)")
    add(
        "--contestant",
        action="append",
        default=[],
        metavar="NAME=FILE.yaml",
        help="settings to compare instead of ours, as for --config of amplify_ds.train; may be given several times. "
        "The benchmark sets batch, steps, end of the decay and seed",
    )
    add(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also train each contestant except the published one for half the steps (default: yes)",
    )
    add("--ranks", type=int, metavar="N", help=f"default: one per GPU, else one per core, at most {MOST_RANKS}")
    add(
        "--directory",
        type=Path,
        default=Path("runs/convergence"),
        metavar="DIR",
        help="where shards and runs are kept and reused (default: %(default)s)",
    )
    add(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="picture of the curves (default: convergence.png in --directory)",
    )
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
        results = _train(options)
    text = curves.table(results, options.seeds) + f"\n\n{CAUTION}"
    print(text)
    picture = options.picture or options.directory / "convergence.png"
    title = f"Recipe {RECIPE} on the bundled proteins, {_seeds(options.seeds)}"
    curves.draw(results, title, picture)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {options.markdown}")
    print(f"wrote {picture}\nruns: {options.directory}")
    print(next_commands(("tensorboard", "--logdir", options.directory)))


def _train(options: argparse.Namespace) -> dict[str, curves.Curve]:
    """Train the runs that are not complete. Return {name of a contestant: its curve over all seeds}."""
    directory = options.directory.absolute()
    ranks = options.ranks or _ranks()
    contestants = {contestant.name: contestant for contestant in _contestants(options)}
    for contestant in contestants.values():  # report errors in files before anything is made
        _config(contestant, options, ranks, directory, 0)
    make_shards(directory)
    runs = {
        (name, seed): (
            directory / f"{name.replace(', ', '-')}-seed-{seed}",
            _config(contestant, options, ranks, directory, seed),
        )
        for seed in range(options.seeds)
        for name, contestant in contestants.items()
    }
    for run_directory, config in runs.values():
        training_runs.check(run_directory, config)
    steps = sum(config.training.steps for _, config in runs.values())
    results: dict[str, list[curves.Curve]] = {name: [] for name in contestants}
    with bars.bar(total=steps, unit="step") as bar:
        for (name, seed), (run_directory, config) in runs.items():
            bar.set_description(f"{name}, seed {seed}")
            training_runs.train(run_directory, config, RECIPE, ranks, bar.update)
            results[name].append(curves.read(run_directory))
            bars.print_line(f"{name}, seed {seed}: {results[name][-1].describe()}")
    return {name: curves.join(each) for name, each in results.items()}


def _contestants(options: argparse.Namespace) -> list[Contestant]:
    contestants = [Contestant("published", None, {}, 1.0)]
    for text in options.contestant:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or not name.replace("-", "").replace("_", "").isalnum():
            raise AmplifyError(f"--contestant {text}: expected NAME=FILE.yaml, with letters, digits, - and _ in NAME")
        if name in (other.name for other in contestants):
            raise AmplifyError(f"--contestant {text}: there is already a contestant named {name}; choose another name")
        contestants.append(Contestant(name, file, {}, 1.0))
    if not options.contestant:
        contestants.append(Contestant("ours", None, OURS, 1.0))
    halves = [other._replace(name=other.name + HALF, share=0.5) for other in contestants[1:]]
    return contestants + (halves if options.half else [])


def _config(contestant: Contestant, options: argparse.Namespace, ranks: int, directory: Path, seed: int) -> RunConfig:
    steps = int(options.steps * contestant.share)
    rows = max(1, (ROWS + ranks // 2) // ranks)  # per rank, as in launch/quickstart.sh
    fixed = {
        "data.train": [str(directory / "train")],
        "data.validation": [str(directory / "validation")],
        "training.steps": steps,
        "optimizer.decay_steps": steps,
        "training.seed": seed,
        "training.micro_batch_rows": rows,
        "training.global_batch_tokens": ROW_TOKENS * rows * ranks,
        "evaluation.every": options.every,
    }
    return resolve(RECIPE, contestant.file, {**contestant.settings, **fixed})


def make_shards(directory: Path) -> None:
    """Make the shards of the quick start from the bundled proteins, unless they are complete."""
    if not EXAMPLES.is_dir():
        raise AmplifyError(
            f"{EXAMPLES} is missing: the benchmark needs a clone of the repository, not only the package"
        )
    validation = EXAMPLES / "validation.fasta.gz"
    for name, more in (("validation", []), ("train", ["--exclude", validation])):
        command = [*BUILD_SHARDS, "--input", EXAMPLES / f"{name}.fasta.gz", *more]
        command += ["--output", directory / name, "--max-length", ROW_TOKENS, "--row-tokens", ROW_TOKENS]
        result = subprocess.run([str(argument) for argument in command], text=True, capture_output=True)
        if result.returncode:
            raise AmplifyError(f"build_shards.py could not make {directory / name}:\n{result.stderr.strip()}")


def _ranks() -> int:
    return gpus() or min(MOST_RANKS, cores())


def _seeds(count: int) -> str:
    return f"mean of {count} seeds, band from lowest to highest" if count > 1 else "one seed"
