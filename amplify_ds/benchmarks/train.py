"""Compare training steps with padded training: `python -m amplify_ds.benchmark train --recipe 120M`.

    padded    how the published code trains: every window padded to the recipe's length, a dense mask, logits at every
              position, eager AdamW, the loss copied to the host each micro batch (padded_model.py)
    ours      the training path: packed rows, Engine under DeepSpeed (ZeRO 1), logits at masked positions only
    compiled  with --compile: ours under torch.compile; the slow first step is not counted
    matrices  the matrix products of the blocks alone, forward and backward, at the same shapes: an upper limit

All contestants read the same windows with the same masks, each in a process of its own. They take turns, step by step,
so that other load on the machine affects all of them. Each uses all cores of this process; with --devices, ranks share
the cores. Speeds count residues, without padding; FLOPs are those of the model on real tokens, including attention
(training/metrics.py). Parts are timed in one more step, which waits for the device after each part.

By default the proteins are resampled from real ones to the lengths of UniRef, as in `prep`. If memory or time is short,
--layers reduces the depth of the model; its width stays.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from amplify_ds.benchmarks import common, prep
from amplify_ds.config import RunConfig, recipes, resolve
from amplify_ds.errors import AmplifyError
from amplify_ds.network import free_port

# Step times that NVIDIA published for its port: (GPUs, sequences of 512 per GPU, seconds).
PUBLISHED = {"120M": (16, 256, 0.461), "350M": (32, 128, 0.525)}
ROW_TOKENS = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", choices=recipes(), default="tiny", help="shape of the model (default: tiny)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="ranks of ours (default: 1)")
    parser.add_argument("--layers", type=int, metavar="N", help="layers of the model (default: the recipe's)")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="rows per rank and step (default: 1)")
    parser.add_argument(
        "--turns", type=int, default=5, metavar="N", help="measured steps of each contestant (default: 5)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also measure ours under torch.compile; needs a C++ compiler (default: no)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="shards to read (default: built from resampled proteins)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to a file")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if min(options.turns, options.devices, options.rows, options.layers or 1) < 1:
        raise AmplifyError("--turns, --devices, --rows and --layers must be at least 1")
    if options.markdown and options.markdown.exists():
        raise AmplifyError(f"{options.markdown}: exists already; choose another name, or remove it first")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as directory:
        shards = options.data or prep.make_shards(
            Path(directory), 2_000_000, "--max-length", 512, "--row-tokens", ROW_TOKENS
        )
        flags = {"model.num_hidden_layers": options.layers} if options.layers else {}
        config = resolve(options.recipe, None, {**flags, "data.train": [str(shards)], "training.compile": False})
        text = compare(config, options)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {options.markdown}")


def compare(config: RunConfig, options: argparse.Namespace) -> str:
    """Measure all contestants in turns and return the table, as Markdown."""
    cores = common.cores()
    ranks, rows = options.devices, options.rows
    contestants = {
        "padded": start("padded", config, rows * ranks, 1, cores),
        "ours": start("ours", config, rows, ranks, max(1, cores // ranks)),
        "matrices": start("matrices", config, rows * ranks, 1, cores),
    }
    if options.compile:
        training = config.training.model_copy(update={"compile": True})
        compiled = config.model_copy(update={"training": training})
        contestants["ours, compiled"] = start("ours", compiled, rows, ranks, max(1, cores // ranks))
    if ranks > 1:
        contestants["ours, one process"] = start("ours", config, rows * ranks, 1, cores)
    try:
        for processes in contestants.values():  # all were started before: ranks wait for each other
            [process.wait() for process in processes]
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        flops: dict[str, list[float]] = {name: [] for name in contestants}
        windows: list[float] = []  # of ours, per second and rank
        for turn in range(options.turns + 1):
            for name, processes in contestants.items():
                results = call(processes, "step")
                if turn:  # the first step is a warm-up
                    seconds = max(result["seconds"] for result in results)
                    speeds[name].append(sum(result["residues"] for result in results) / seconds)
                    flops[name].append(sum(result["flops"] for result in results) / seconds)
                    if name == "ours":
                        windows.append(sum(result["windows"] for result in results) / seconds / ranks)
        parts = {name: call(contestants[name], "parts") for name in ("padded", "ours")}
        memory = {
            name: sum(result["memory"] for result in call(processes, "memory"))
            for name, processes in contestants.items()
        }
    finally:
        for processes in contestants.values():
            for process in processes:
                process.end()
    table = markdown_table(config, options, cores, speeds, flops, memory, parts)
    return table + compare_with_published(options.recipe, windows)


def start(kind: str, config: RunConfig, rows: int, ranks: int, threads: int) -> list[Process]:
    """Start the processes of a contestant, one per rank, each with `threads` threads."""
    port = free_port()
    return [Process(kind, config, rows, rank, ranks, threads, port) for rank in range(ranks)]


class Process:
    """A process of a contestant; runs the method whose name it is sent, and sends back the result."""

    def __init__(self, kind: str, config: RunConfig, rows: int, rank: int, ranks: int, threads: int, port: int):
        context = get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        arguments = (kind, config.model_dump_json(), rows, rank, ranks, threads, port, child_pipe)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        child_pipe.close()

    def send(self, method: str) -> None:
        self._pipe.send(method)

    def wait(self) -> Any:
        """Return the result of the method. Raises AmplifyError if the process failed or ended."""
        try:
            result = self._pipe.recv()
        except EOFError:
            raise AmplifyError(
                "a contestant's process ended, see its message above; if memory ran out, use fewer --layers or --rows"
            ) from None
        if isinstance(result, str):
            raise AmplifyError(result)
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def call(processes: list[Process], method: str) -> list[dict]:
    """Run `method` in all processes at once and return their results."""
    for process in processes:
        process.send(method)
    return [process.wait() for process in processes]


def _serve(kind: str, config: str, rows: int, rank: int, ranks: int, threads: int, port: int, pipe) -> None:
    """Build a contestant and run its methods as they are received through `pipe`."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"  # read by DeepSpeed when it is imported
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        from amplify_ds.benchmarks import contestants

        contestant = contestants.KINDS[kind](RunConfig.model_validate_json(config), rows, rank, ranks, threads)
        pipe.send({})
        while True:
            pipe.send(getattr(contestant, pipe.recv())())
    except EOFError:
        pass
    except AmplifyError as error:
        pipe.send(str(error))


def compare_with_published(recipe: str, windows: list[float]) -> str:
    """Return a line with NVIDIA's published step time and ours for as many proteins; empty without GPUs.

    windows: proteins of ours per second and GPU.
    """
    import torch

    if recipe not in PUBLISHED or not torch.cuda.is_available():
        return ""
    gpus, sequences, seconds = PUBLISHED[recipe]
    return (
        f"\npublished for {gpus} H100s: {sequences} proteins of up to 512 per GPU in {seconds:.3f} s; ours on this "
        f"machine ({torch.cuda.get_device_name()}): {sequences / np.median(windows):.3f} s for as many"
    )


def markdown_table(config: RunConfig, options: argparse.Namespace, cores: int, speeds, flops, memory, parts) -> str:
    """Return the table and the shares of each part of a step, as Markdown."""
    title = (
        f"recipe {options.recipe}, {config.model.num_hidden_layers} layers of width {config.model.hidden_size}; "
        f"{options.rows * options.devices} rows per step, {options.turns} turns, {cores} cores"
    )
    lines = [title, "", "| | residues/s | × padded | model GFLOP/s | share of matrix rate | peak memory, GiB |"]
    lines.append("|---|---|---|---|---|---|")
    for name in speeds:
        speed = f"{np.median(speeds[name]):,.0f} | {np.median(np.divide(speeds[name], speeds['padded'])):.2f}"
        if name == "matrices":
            speed = " | "
        share = np.median(np.divide(flops[name], flops["matrices"]))
        lines.append(
            f"| {name} | {speed} | {np.median(flops[name]) / 1e9:,.1f} | {share:.0%} | {memory[name] / 2**30:.2f} |"
        )
    lines.append("")
    if "ours, one process" in speeds:
        ratio = np.median(np.divide(speeds["ours"], speeds["ours, one process"]))
        lines.append(
            f"{options.devices} ranks under ZeRO 1: {ratio:.2f} times the speed of one process with as many threads"
        )
    lines.append(f"peak memory of ours: {memory['ours'] / memory['padded']:.0%} of padded")
    for name, ranks in parts.items():
        total = sum(ranks[0].values())
        shares = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in ranks[0].items())
        lines.append(f"{name}, step of {total:.2f} s: {shares}")
    return "\n".join(lines)
