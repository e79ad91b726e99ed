"""Measure training steps beside the usual way: `python -m amplify_ds.benchmark train --recipe 120M`.

    padded    every window padded to the recipe's length, a dense mask, logits at every place, eager AdamW, the loss
              copied to the host each micro batch: how the published code trains, here padded_model.py
    ours      the training path: packed rows, Engine under DeepSpeed (ZeRO 1), masked positions only
    compiled  with --compile: ours under torch.compile, whose first step, the slow one, is not counted
    matrices  the matrix products of the blocks alone, forward and backward, at their own shapes: what there is to win

All read the same windows with the same masks, each in a process of its own, a step at a time in turns, so that what
else the machine does meets all; every one has all cores of this process, or with --devices each rank its share.
Residues are counted, never padding; FLOPs are those of the model on real tokens (training/metrics.py), attention's
included. Parts are timed in further steps, in which each is waited for.

The proteins are resampled real ones with the lengths of UniRef, as for `prep`, unless --data names shards. Where memory
or time asks for it, --layers makes the model less deep; its width stays.
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

# Step time in seconds as NVIDIA published it for its port: (GPUs, sequences of 512 a GPU, seconds).
PUBLISHED = {"120M": (16, 256, 0.461), "350M": (32, 128, 0.525)}
ROW_TOKENS = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", choices=recipes(), default="tiny", help="the model's shape (default: tiny)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="ranks of ours (default: 1)")
    parser.add_argument("--layers", type=int, metavar="N", help="of the model (default: the recipe's)")
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="of a micro batch, a step (default: 1)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="steps of each (default: 5)")
    parser.add_argument(
        "--compile", action="store_true", help="ours under torch.compile as well; needs a C++ compiler (default: not)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="shards to read (default: made for the purpose)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to a file")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if min(options.turns, options.devices, options.rows, options.layers or 1) < 1:
        raise AmplifyError("--turns, --devices, --rows and --layers must be at least 1")
    if options.markdown and options.markdown.exists():
        raise AmplifyError(f"{options.markdown}: exists already; choose another name, or remove it first")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as place:
        shards = options.data or prep.make_shards(
            Path(place), 2_000_000, "--max-length", 512, "--row-tokens", ROW_TOKENS
        )
        flags = {"model.num_hidden_layers": options.layers} if options.layers else {}
        config = resolve(options.recipe, None, {**flags, "data.train": [str(shards)], "training.compile": False})
        text = compare(config, options)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {options.markdown}")


def compare(config: RunConfig, options: argparse.Namespace) -> str:
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
        for processes in contestants.values():  # begin together: ranks meet
            [process.wait() for process in processes]
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        flops: dict[str, list[float]] = {name: [] for name in contestants}
        windows: list[float] = []  # a second, of ours
        for turn in range(options.turns + 1):
            for name, processes in contestants.items():
                said = ask(processes, "step")
                if turn:  # the first warms up
                    seconds = max(one["seconds"] for one in said)
                    speeds[name].append(sum(one["residues"] for one in said) / seconds)
                    flops[name].append(sum(one["flops"] for one in said) / seconds)
                    if name == "ours":
                        windows.append(sum(one["windows"] for one in said) / seconds / ranks)
        parts = {name: ask(contestants[name], "parts") for name in ("padded", "ours")}
        memory = {name: sum(one["memory"] for one in ask(c, "memory")) for name, c in contestants.items()}
    finally:
        for processes in contestants.values():
            for process in processes:
                process.end()
    return report(config, options, cores, speeds, flops, memory, parts) + published(options.recipe, windows)


def start(kind: str, config: RunConfig, rows: int, ranks: int, threads: int) -> list[Process]:
    """The processes of a contestant, each with `threads` threads, which meet if they are several."""
    port = free_port()
    return [Process(kind, config, rows, rank, ranks, threads, port) for rank in range(ranks)]


class Process:
    """Does what it is told."""

    def __init__(self, kind: str, config: RunConfig, rows: int, rank: int, ranks: int, threads: int, port: int):
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (kind, config.model_dump_json(), rows, rank, ranks, threads, port, theirs)
        self._process = context.Process(target=_live, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, what: str) -> None:
        self._pipe.send(what)

    def wait(self) -> Any:
        try:
            found = self._pipe.recv()
        except EOFError:
            raise AmplifyError("a contestant has ended, see above; perhaps memory ran out: fewer --layers") from None
        if isinstance(found, str):
            raise AmplifyError(found)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def ask(processes: list[Process], what: str) -> list[dict]:
    """What each process answers, when all are at it at once."""
    for process in processes:
        process.tell(what)
    return [process.wait() for process in processes]


def _live(kind: str, config: str, rows: int, rank: int, ranks: int, threads: int, port: int, pipe) -> None:
    """A contestant's life: what is said goes through `pipe`."""
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

        doing = contestants.KINDS[kind](RunConfig.model_validate_json(config), rows, rank, ranks, threads)
        pipe.send({})
        while True:
            pipe.send(getattr(doing, pipe.recv())())
    except EOFError:
        pass
    except AmplifyError as error:
        pipe.send(str(error))


def published(recipe: str, windows: list[float]) -> str:
    """On GPUs: NVIDIA's published step beside as many proteins of ours. windows: a second and GPU."""
    import torch

    if recipe not in PUBLISHED or not torch.cuda.is_available():
        return ""
    gpus, sequences, seconds = PUBLISHED[recipe]
    return (
        f"\npublished for {gpus} H100s: {sequences} proteins of up to 512 a GPU in {seconds:.3f} s; ours here, on "
        f"{torch.cuda.get_device_name()}: {sequences / np.median(windows):.3f} s for as many, without other machines"
    )


def report(config: RunConfig, options: argparse.Namespace, cores: int, speeds, flops, memory, parts) -> str:
    """The table, as Markdown."""
    title = (
        f"recipe {options.recipe}, {config.model.num_hidden_layers} layers of width {config.model.hidden_size}; "
        f"{options.rows * options.devices} rows per step, {options.turns} turns, {cores} cores"
    )
    lines = [title, "", "| | residues/s | × padded | model GFLOP/s | of the matrix rate | peak memory, GiB |"]
    lines.append("|---|---|---|---|---|---|")
    for name in speeds:
        fast = f"{np.median(speeds[name]):,.0f} | {np.median(np.divide(speeds[name], speeds['padded'])):.2f}"
        if name == "matrices":
            fast = " | "
        share = np.median(np.divide(flops[name], flops["matrices"]))
        lines.append(
            f"| {name} | {fast} | {np.median(flops[name]) / 1e9:,.1f} | {share:.0%} | {memory[name] / 2**30:.2f} |"
        )
    lines.append("")
    if "ours, one process" in speeds:
        ratio = np.median(np.divide(speeds["ours"], speeds["ours, one process"]))
        lines.append(f"{options.devices} ranks under ZeRO 1: {ratio:.2f} of one process with as many threads")
    lines.append(f"peak memory of ours: {memory['ours'] / memory['padded']:.0%} of padded's")
    for name, found in parts.items():
        whole = sum(found[0].values())
        shares = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in found[0].items())
        lines.append(f"{name}, a step of {whole:.2f} s: {shares}")
    return "\n".join(lines)
