"""Measure what a step costs as work grows: `python -m amplify_ds.benchmark growth`.

    length   sequences of 512 to 8,192 tokens that fill a row of 8,192: the cost of attention grows, the rest does not
    size     models from `tiny` to 350M on a row of 1,024 tokens; models that do not fit into memory are left out
    shards   1 to 1,000 shards of equal size: the time to open them and to read the batch of a late step
    ranks    1, 2, 4 … ranks under ZeRO 1 with one thread and one row of 8,192 tokens each; the share of linear
             scaling is relative to the smallest number of ranks

Steps are those of the training path (contestants.py, `ours`), each case in processes of its own. The cases of a part
take turns, except sizes, which run one after another. The first step is a warm-up; tables show the median of the
others. Every window has exactly the given length and consists of random residues, so the tables show the cost of a
length, not of the lengths that proteins have. Peak memory includes the process itself, some 0.4 GiB on a CPU. FLOPs are
those of training/metrics.py.
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
SHARD_ROWS, LATE_STEP = 16_000, 900_000
PROCESS = 0.5 * 2**30  # bytes that a process takes once it has imported everything
MARGIN = 1.4  # free memory needed, relative to the estimate: 120M and 350M took 1.3 times the estimate on a CPU
GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--part",
        dest="only",
        choices=PARTS,
        action="append",
        help="run only this part; may be given several times (default: all)",
    )
    add(
        "--turns", type=int, default=3, metavar="N", help="measured steps per case, after one warm-up step (default: 3)"
    )
    add(
        "--lengths",
        type=int,
        nargs="+",
        default=[512, 1024, 2048, 4096, 8192],
        metavar="L",
        help=f"tokens per sequence, divisors of {ROW_TOKENS} (default: 512 1024 2048 4096 8192)",
    )
    add(
        "--sizes",
        nargs="+",
        default=["tiny", "120M:2", "120M", "350M"],
        metavar="RECIPE[:LAYERS]",
        help="models (default: tiny 120M:2 120M 350M)",
    )
    add(
        "--shards",
        type=int,
        nargs="+",
        default=[1, 10, 100, 1000],
        metavar="N",
        help="numbers of shards (default: 1 10 100 1000)",
    )
    add(
        "--ranks",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of ranks (default: 1, 2, 4 … up to all GPUs, else all cores)",
    )
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to a file")
    add("--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)")


def run(options: argparse.Namespace) -> None:
    counts = [options.turns, *options.lengths, *options.shards, *(options.ranks or [1])]
    if min(counts) < 1:
        raise AmplifyError("--turns, --lengths, --shards and --ranks must be at least 1")
    if invalid := [length for length in options.lengths if length < 8 or ROW_TOKENS % length]:
        raise AmplifyError(f"--lengths {invalid[0]}: must be at least 8 and divide the {ROW_TOKENS} tokens of a row")
    if options.markdown and options.markdown.exists():
        raise AmplifyError(f"{options.markdown}: exists already; choose another name, or remove it first")
    models = [_model(text) for text in options.sizes]
    texts = []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as temporary:
        directory = Path(temporary)
        measurements = {
            "length": lambda: by_length(directory, options.lengths, options.turns),
            "size": lambda: by_size(directory, models, options.turns),
            "shards": lambda: by_shards(directory, options.shards),
            "ranks": lambda: by_ranks(directory, options.ranks or _ranks(), options.turns),
        }
        for part in options.only or PARTS:
            texts.append(measurements[part]())
            print(f"{texts[-1]}\n", flush=True)
    if options.markdown:
        options.markdown.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        print(f"wrote {options.markdown}")
    print("python -m amplify_ds.benchmark train compares the same step with padded batches")


def by_length(directory: Path, lengths: Sequence[int], turns: int) -> str:
    configs = {length: _config(exact_windows(directory, length, ROW_TOKENS), "tiny", None) for length in lengths}
    cases = {length: start_contestant("ours", configs[length], 1, 1, cores()) for length in lengths}
    lines = []
    for length, result in measure(cases, turns, "length").items():
        model = configs[length].model
        pairs = 12.0 * model.num_hidden_layers * model.hidden_size * ROW_TOKENS * length
        lines.append(
            f"{length:,} | {result.seconds:.4g} | {result.residues / result.seconds:,.0f} | "
            f"{result.flops / result.seconds / 1e9:,.1f} | {pairs / result.flops:.0%} | {result.memory / GIB:.2f}"
        )
    return _table(
        f"recipe tiny, one row of {ROW_TOKENS:,} tokens per step, median of {turns} turns, {cores()} threads",
        "tokens per sequence | seconds per step | residues/s | model GFLOP/s | attention, share of FLOPs | "
        "peak memory, GiB",
        lines,
    )


def by_size(directory: Path, models: Sequence[tuple[str, int | None]], turns: int) -> str:
    shards, lines, left_out = exact_windows(directory, WINDOW, SHORT_ROW), [], []
    for recipe, layers in models:
        config = _config(shards, recipe, layers)
        shape = derived.model_config(config, WINDOW)
        name = f"{recipe}, {layers} layers" if layers else recipe
        need = sum(derived.memory_per_device(config, shape, SHORT_ROW, 1, 1, _precision(config)).values()) + PROCESS
        free = _free_memory()
        if need * MARGIN > free:
            left_out.append(
                f"{name}: left out, needs up to {need * MARGIN / GIB:.1f} GiB, {free / GIB:.1f} GiB are free."
            )
            continue
        result = measure({name: start_contestant("ours", config, 1, 1, cores())}, turns, f"size {name}")[name]
        lines.append(
            f"{name} | {derived.parameter_count(shape):,} | {result.seconds:.4g} | "
            f"{result.residues / result.seconds:,.0f} | "
            f"{result.flops / result.seconds / 1e9:,.1f} | {result.memory / GIB:.2f} | {need / GIB:.2f}"
        )
    return _table(
        f"one row of {SHORT_ROW:,} tokens per step, sequences of {WINDOW}, median of {turns} turns, {cores()} threads",
        "recipe | parameters | seconds per step | residues/s | model GFLOP/s | peak memory, GiB | estimate, GiB",
        lines,
        left_out,
    )


def by_shards(directory: Path, counts: Sequence[int]) -> str:
    lines = []
    for count in bars.bar(counts, desc="shards"):
        result = start.measure_in_new_process(count, SHARD_ROWS, LATE_STEP, directory)
        lines.append(
            f"{count:,} | {count * SHARD_ROWS:,} | {result['opened'] * 1e3:,.1f} | "
            f"{(result['seconds'] - result['opened']) * 1e3:,.1f} | {result['added'] / 1e6:,.1f} | {result['files']}"
        )
    return _table(
        f"shards of {SHARD_ROWS:,} rows of {start.ROW_TOKENS:,} tokens, one rank's share of step {LATE_STEP:,}",
        "shards | rows | time to open, ms | time to first batch after that, ms | memory added, MB | open files",
        lines,
    )


def by_ranks(directory: Path, counts: Sequence[int], turns: int) -> str:
    config = _config(exact_windows(directory, WINDOW, ROW_TOKENS), "tiny", None)
    results = measure({count: start_contestant("ours", config, 1, count, 1) for count in counts}, turns, "ranks")
    fewest = min(counts)
    single = results[fewest].residues / results[fewest].seconds / fewest  # residues/s per rank
    lines = [
        f"{count} | {result.seconds:.4g} | {result.residues / result.seconds:,.0f} | "
        f"{result.residues / result.seconds / count / single:.0%} | "
        f"{result.communication:.0%} | {result.memory / GIB:.2f}"
        for count, result in results.items()
    ]
    return _table(
        f"recipe tiny, ZeRO 1, one row of {ROW_TOKENS:,} tokens and one thread per rank, median of {turns} turns, "
        f"{cores()} cores",
        "ranks | seconds per step | residues/s, all ranks | share of linear | communication, share of step | "
        "memory per rank, GiB",
        lines,
    )


def _config(shards: Path, recipe: str, layers: int | None) -> RunConfig:
    flags = {"model.num_hidden_layers": layers} if layers else {}
    fixed = {"data.train": [str(shards)], "training.compile": False, "training.micro_batch_rows": 1}
    return resolve(recipe, None, {**flags, **fixed})


def _model(text: str) -> tuple[str, int | None]:
    recipe, colon, layers = text.partition(":")
    if recipe not in recipes() or (colon and not (layers.isdigit() and int(layers))):
        raise AmplifyError(f"--sizes {text}: expected RECIPE[:LAYERS] with RECIPE one of {', '.join(recipes())}")
    return recipe, int(layers) if colon else None


def _ranks() -> list[int]:
    """Return 1, 2, 4 … and the number of all GPUs, or of all cores without a GPU."""
    maximum = gpus() or cores()
    return sorted({2**power for power in range(maximum.bit_length())} | {maximum})


def _free_memory() -> float:
    """Return the free memory of the device in bytes."""
    import torch

    return torch.cuda.mem_get_info()[0] if gpus() else psutil.virtual_memory().available


def _precision(config: RunConfig) -> str:
    return derived.resolve_precision(config.training.precision, "cuda" if gpus() else "cpu")


def _table(title: str, head: str, lines: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Return a Markdown table with a title above and notes below it."""
    rule = "|".join(["---"] * (head.count("|") + 1))
    rows = [title, "", f"| {head} |", f"|{rule}|", *(f"| {line} |" for line in lines)]
    return "\n".join(rows + ["", *notes] if notes else rows)
