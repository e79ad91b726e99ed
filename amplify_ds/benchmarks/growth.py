"""Measure what a step costs as work grows: `python -m amplify_ds.benchmark growth`.

    length   sequences of 512 to 8,192 tokens, as many as a row of 8,192 holds: attention grows, the rest does not
    size     models from `tiny` to 350M on a row of 1,024 tokens; those that memory does not hold are left out
    shards   1 to 1,000 shards of one size: to open them, and to reach a far step
    ranks    1, 2, 4 … ranks under ZeRO 1, one thread and one row of 8,192 tokens each; linear: every rank as fast
             as each of the fewest

Steps are those of the training path (contestants.py, `ours`), each case in processes of its own; cases of one part take
turns, sizes follow each other. The first step warms up, the median of the others counts. Every window has exactly the
length that is asked for, made of random residues: the tables show what that length costs, not what proteins have.
Peak memory counts the process as well, some 0.4 GiB on a CPU. FLOPs are those of training/metrics.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from amplify_ds import bars
from amplify_ds.benchmarks import start
from amplify_ds.benchmarks.common import cores, gpus
from amplify_ds.benchmarks.steps import exact_windows, measure
from amplify_ds.benchmarks.train import start as start_contestant
from amplify_ds.config import RunConfig, recipes, resolve
from amplify_ds.errors import AmplifyError
from amplify_ds.training import derived

PARTS = ("length", "size", "shards", "ranks")
WINDOW, ROW_TOKENS, SHORT_ROW = 512, 8192, 1024
SHARD_ROWS, FAR_STEP = 16_000, 900_000
PROCESS = 0.5 * 2**30  # bytes of a process that has imported everything
MARGIN = 1.4  # of free memory over the estimate: 120M and 350M took 1.3 times as much on a CPU
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--part", dest="only", choices=PARTS, action="append", help="may be given several times (default: all)")
    add("--turns", type=int, default=3, metavar="N", help="steps of each after the first (default: 3)")
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=[512, 1024, 2048, 4096, 8192],
        metavar="L",
        help=f"tokens of a sequence, divisors of {ROW_TOKENS} (default: 512 1024 2048 4096 8192)",
    )
    add(
        "--sizes",
        nargs="+",
        default=["tiny", "120M:2", "120M", "350M"],
        metavar="RECIPE[:LAYERS]",
        help="models (default: tiny 120M:2 120M 350M)",
    )
    add("--shards", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="N", help="default: 1 10 100 1000")
    add("--ranks", type=int, nargs="+", metavar="N", help="default: 1, 2, 4 … up to all GPUs, else all cores")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to a file")
    add("--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)")


def run(options: argparse.Namespace) -> None:
    counts = [options.turns, *options.lengths, *options.shards, *(options.ranks or [1])]
    if min(counts) < 1:
        raise AmplifyError("--turns, --lengths, --shards and --ranks must be at least 1")
    if odd := [length for length in options.lengths if length < 8 or ROW_TOKENS % length]:
        raise AmplifyError(f"--lengths {odd[0]}: must be at least 8 and divide the {ROW_TOKENS} tokens of a row")
    if options.markdown and options.markdown.exists():
        raise AmplifyError(f"{options.markdown}: exists already; choose another name, or remove it first")
    models = [_model(text) for text in options.sizes]
    texts = []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as directory:
        place = Path(directory)
        work = {
            "length": lambda: by_length(place, options.lengths, options.turns),
            "size": lambda: by_size(place, models, options.turns),
            "shards": lambda: by_shards(place, options.shards),
            "ranks": lambda: by_ranks(place, options.ranks or _ranks(), options.turns),
        }
        for part in options.only or PARTS:
            texts.append(work[part]())
            print(f"{texts[-1]}\n", flush=True)
    if options.markdown:
        options.markdown.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        print(f"wrote {options.markdown}")
    print("python -m amplify_ds.benchmark train puts the same step beside the padded way")


def by_length(place: Path, lengths: Sequence[int], turns: int) -> str:
    configs = {length: _config(exact_windows(place, length, ROW_TOKENS), "tiny", None) for length in lengths}
    with_processes = {length: start_contestant("ours", configs[length], 1, 1, cores()) for length in lengths}
    lines = []
    for length, found in measure(with_processes, turns, "length").items():
        model = configs[length].model
        pairs = 12.0 * model.num_hidden_layers * model.hidden_size * ROW_TOKENS * length
        lines.append(
            f"{length:,} | {found.seconds:.4g} | {found.residues / found.seconds:,.0f} | "
            f"{found.flops / found.seconds / 1e9:,.1f} | {pairs / found.flops:.0%} | {found.memory / GIB:.2f}"
        )
    return _table(
        f"recipe tiny, one row of {ROW_TOKENS:,} tokens per step, median of {turns} turns, {cores()} threads",
        "tokens per sequence | seconds per step | residues/s | model GFLOP/s | attention, of FLOPs | peak memory, GiB",
        lines,
    )


def by_size(place: Path, models: Sequence[tuple[str, int | None]], turns: int) -> str:
    shards, lines, without = exact_windows(place, WINDOW, SHORT_ROW), [], []
    for recipe, layers in models:
        config = _config(shards, recipe, layers)
        shape = derived.model_config(config, WINDOW)
        name = f"{recipe}, {layers} layers" if layers else recipe
        need = sum(derived.memory_per_device(config, shape, SHORT_ROW, 1, 1, _precision(config)).values()) + PROCESS
        free = _free_memory()
        if need * MARGIN > free:
            wanted = f"needs up to {need * MARGIN / GIB:.1f} GiB"
            without.append(f"{name}: left out, {wanted}, {free / GIB:.1f} GiB are free.")
            continue
        found = measure({name: start_contestant("ours", config, 1, 1, cores())}, turns, f"size {name}")[name]
        lines.append(
            f"{name} | {derived.parameter_count(shape):,} | {found.seconds:.4g} | "
            f"{found.residues / found.seconds:,.0f} | "
            f"{found.flops / found.seconds / 1e9:,.1f} | {found.memory / GIB:.2f} | {need / GIB:.2f}"
        )
    return _table(
        f"one row of {SHORT_ROW:,} tokens per step, sequences of {WINDOW}, median of {turns} turns, {cores()} threads",
        "recipe | parameters | seconds per step | residues/s | model GFLOP/s | peak memory, GiB | as estimated before",
        lines,
        without,
    )


def by_shards(place: Path, counts: Sequence[int]) -> str:
    lines = []
    for count in bars.bar(counts, desc="shards"):
        found = start.measure_apart(count, SHARD_ROWS, FAR_STEP, place)
        lines.append(
            f"{count:,} | {count * SHARD_ROWS:,} | {found['opened'] * 1e3:,.1f} | "
            f"{(found['seconds'] - found['opened']) * 1e3:,.1f} | {found['added'] / 1e6:,.1f} | {found['files']}"
        )
    return _table(
        f"shards of {SHARD_ROWS:,} rows of {start.ROW_TOKENS:,} tokens, a rank's share of step {FAR_STEP:,}",
        "shards | rows | opened after, ms | then the batch, ms | memory added, MB | files kept open",
        lines,
    )


def by_ranks(place: Path, counts: Sequence[int], turns: int) -> str:
    config = _config(exact_windows(place, WINDOW, ROW_TOKENS), "tiny", None)
    found = measure({count: start_contestant("ours", config, 1, count, 1) for count in counts}, turns, "ranks")
    fewest = min(counts)
    alone = found[fewest].residues / found[fewest].seconds / fewest
    lines = [
        f"{count} | {one.seconds:.4g} | {one.residues / one.seconds:,.0f} | "
        f"{one.residues / one.seconds / count / alone:.0%} | {one.communication:.0%} | {one.memory / GIB:.2f}"
        for count, one in found.items()
    ]
    return _table(
        f"recipe tiny, ZeRO 1, a row of {ROW_TOKENS:,} tokens and a thread a rank, median of {turns} turns, "
        f"{cores()} cores",
        "ranks | seconds per step | residues/s of all | of linear | communication, of a step | memory of a rank, GiB",
        lines,
    )


def _config(shards: Path, recipe: str, layers: int | None) -> RunConfig:
    flags = {"model.num_hidden_layers": layers} if layers else {}
    fixed = {"data.train": [str(shards)], "training.compile": False, "training.micro_batch_rows": 1}
    return resolve(recipe, None, {**flags, **fixed})


def _model(text: str) -> tuple[str, int | None]:
    recipe, colon, layers = text.partition(":")
    if recipe not in recipes() or (colon and not (layers.isdigit() and int(layers))):
        raise AmplifyError(f"--sizes {text}: expected RECIPE[:LAYERS], RECIPE one of {', '.join(recipes())}")
    return recipe, int(layers) if colon else None


def _ranks() -> list[int]:
    """1, 2, 4 … and all that there are."""
    most = gpus() or cores()
    return sorted({2**power for power in range(most.bit_length())} | {most})


def _free_memory() -> float:
    """Of the device that a step is taken on, in bytes."""
    import torch

    return torch.cuda.mem_get_info()[0] if gpus() else psutil.virtual_memory().available


def _precision(config: RunConfig) -> str:
    return derived.resolve_precision(config.training.precision, "cuda" if gpus() else "cpu")


def _table(title: str, head: str, lines: Sequence[str], after: Sequence[str] = ()) -> str:
    rule = "|".join(["---"] * (head.count("|") + 1))
    rows = [title, "", f"| {head} |", f"|{rule}|", *(f"| {line} |" for line in lines)]
    return "\n".join(rows + ["", *after] if after else rows)
