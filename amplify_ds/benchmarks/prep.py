"""Measure data preparation on this machine: `python -m amplify_ds.benchmark prep`.

The input is resampled from the bundled proteins: one residue in twenty is replaced, and lengths are those of UniRef
(log-normal, mean 350). Each run is a process of its own, restricted to one core per worker; its time is from
its start to the finished directory, on uncompressed FASTA. The usual pipeline (dnaio, `datasets.map` in batches, fast
tokenizer, padding to 512) is much slower, so it reads only the start of the small file; its imports are not timed.
`bytes.translate` alone gives the upper limit. CSV tables hold the proteins of the small file and are compared with it.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.benchmarks.common import on_one_core, table
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import RESIDUES, encode_bytes

BUILD_SHARDS = (sys.executable, "-m", "amplify_ds.build_shards")
EXAMPLES = Path(__file__).parents[2] / "data_prep" / "example"  # the bundled proteins
_BLOCK = 2**24  # residues per draw
_MEAN_LENGTH, _SPREAD = 350, 0.65
_LINE = 60
_ONE_SHARD = 195_000_000  # residues in one shard of the default size; memory does not grow beyond it


class Measured(NamedTuple):
    """One run of build_shards."""

    seconds: float  # from start to end
    cpu_seconds: float  # processor time: less affected by other load on the machine
    residues: int  # in the shards
    memory: int  # peak of the largest process, in bytes
    efficiency: float  # packing efficiency


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--residues",
        type=float,
        default=2e9,
        metavar="N",
        help="residues in the input, 5 bytes of disk for each (default: 2e9)",
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="number of workers to compare with one worker (default: 2)"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if not EXAMPLES.is_dir():
        raise AmplifyError(
            f"{EXAMPLES} is missing: the benchmark needs a clone of the repository, not only the package"
        )
    directory = Path(tempfile.mkdtemp(prefix="benchmark-", dir=options.directory))
    try:
        _prep(directory, int(options.residues), options.workers)
    finally:
        shutil.rmtree(directory)


def _prep(directory: Path, residues: int, workers: int) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"data preparation, {residues:,} residues of resampled proteins, {cores} cores", flush=True)
    small, large = directory / "small.fasta", directory / "large.fasta"
    small_residues = min(residues // 10, _ONE_SHARD)
    make_fasta(small, small_residues)
    make_fasta(large, residues)
    usual_speed, usual_residues = _usual_pipeline(directory, small)
    limit = _translate(large)
    on_small, one = _build(directory, small, 1), _build(directory, large, 1)
    lines = [
        ("upper limit: `bytes.translate` alone", f"{limit / 1e6:,.0f} million residues/s"),
        ("one core, FASTA to finished shards", f"{one.residues / one.seconds / 1e6:.1f} million residues/s"),
        ("  per second of processor time", f"{one.residues / one.cpu_seconds / 1e6:.1f} million residues"),
        (f"datasets.map, same core ({usual_residues:,} residues)", f"{usual_speed / 1e6:.2f} million residues/s"),
        ("  times slower", f"{one.residues / one.seconds / usual_speed:.0f}"),
        ("packing efficiency", f"{one.efficiency:.2%}"),
        (f"peak memory, {small_residues:,} residues", f"{on_small.memory / 1e6:,.0f} MB"),
        (
            f"peak memory, {residues:,} residues",
            f"{one.memory / 1e6:,.0f} MB ({one.memory / on_small.memory - 1:+.0%})",
        ),
    ]
    if 1 < workers <= cores:
        many = _build(directory, large, workers)
        speed = (
            f"{many.residues / many.seconds / 1e6:.1f} million residues/s, {one.seconds / many.seconds:.2f} times one"
        )
        lines += [
            (f"{workers} workers", speed),
            ("  peak memory of the largest process", f"{many.memory / 1e6:,.0f} MB"),
        ]
    for label, quoted in (("CSV, one core", False), ("CSV, quoted cells with line breaks", True)):
        rows = directory / "small.csv"
        make_csv(rows, small, quoted)
        csv = _build(directory, rows, 1)
        speed = f"{csv.residues / csv.cpu_seconds / 1e6:.1f} million residues per second of processor time"
        lines.append((label, f"{speed}, {on_small.cpu_seconds / csv.cpu_seconds:.2f} times FASTA"))
    print(table(lines))


def make_shards(directory: Path, residues: int, *options: object) -> Path:
    """Build shards of resampled proteins in `directory`, with `options` of build_shards, and return their path."""
    make_fasta(directory / "proteins.fasta", residues)
    command = [*BUILD_SHARDS, "--input", directory / "proteins.fasta", "--output", directory / "shards", *options]
    if subprocess.run([str(argument) for argument in command], stdout=subprocess.DEVNULL).returncode:
        raise AmplifyError("build_shards.py failed, see its message above")
    return directory / "shards"


def make_csv(path: Path, fasta: Path, quoted: bool) -> None:
    """Write the proteins of `fasta` as a table of names and sequences; `quoted` keeps the line breaks of sequences."""
    quote, line_break = (b'"', b"\n") if quoted else (b"", b"")
    with open(fasta, "rb") as file, open(path, "wb") as out:
        out.write(b"name,sequence\n")
        lines: list[bytes] = []
        for line in chain(file, [b">"]):
            if line.startswith(b">") and lines:
                name, *sequence = lines
                out.writelines((quote, name, quote, b",", quote, line_break.join(sequence), quote, b"\n"))
                lines = []
            lines.append(line.strip().removeprefix(b">"))


def make_fasta(path: Path, residues: int) -> None:
    """Write about `residues` residues of resampled real proteins to `path`."""
    rng = np.random.default_rng(0)
    with gzip.open(EXAMPLES / "train.fasta.gz") as file:
        sequences = b"".join(line.strip() for line in file if not line.startswith(b">"))
    real = np.frombuffer(sequences, dtype=np.uint8)
    letters = np.frombuffer(RESIDUES.encode(), dtype=np.uint8)
    number = 0
    with open(path, "wb") as out:
        while residues > 0:
            size = min(residues, _BLOCK)
            residues -= size
            drawn = np.tile(real, -(-size // len(real)) + 1)[rng.integers(len(real)) :][:size]
            replaced = rng.random(size) < 0.05
            drawn[replaced] = rng.choice(letters, replaced.sum())
            ends = np.cumsum(_lengths(rng, size)).tolist()
            text, start = drawn.tobytes(), 0
            for end in (end for end in ends if end <= size):
                out.write(
                    b">sp|P%08d|BENCH_%d Resampled protein OS=Homo sapiens OX=9606 PE=1 SV=1\n" % (number, number)
                )
                out.writelines(text[at : min(at + _LINE, end)] + b"\n" for at in range(start, end, _LINE))
                number, start = number + 1, end


def _lengths(rng: np.random.Generator, residues: int) -> np.ndarray:
    """Return about as many log-normal lengths as add up to `residues`."""
    location = np.log(_MEAN_LENGTH) - _SPREAD**2 / 2
    return np.clip(rng.lognormal(location, _SPREAD, residues // _MEAN_LENGTH + 1), 20, 20_000).astype(np.int64)


def _build(directory: Path, proteins: Path, workers: int) -> Measured:
    """Run build_shards.py in a process of its own, on as many cores as workers."""
    output = directory / "shards"
    command = [*BUILD_SHARDS, "--input", proteins, "--output", output, "--workers", workers]
    cores = sorted(os.sched_getaffinity(0))[:workers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(argument) for argument in command],
        env=environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AmplifyError(f"build_shards.py ended with exit code {process.returncode}, see its message above")
    manifest = Shards(output).manifest
    shutil.rmtree(output)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Measured(
        seconds, cpu_seconds, manifest["counts"]["residues"], usage.ru_maxrss * 1024, manifest["packing_efficiency"]
    )


def _usual_pipeline(directory: Path, fasta: Path, residues: int = 4_000_000) -> tuple[float, int]:
    """Return residues per second and residues, from FASTA to a dataset of padded ids with `datasets` on one core.

    Counts all residues, including those that truncation to 512 tokens drops.
    """
    import dnaio
    from datasets import Dataset, disable_progress_bars
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    from amplify_ds.hub.tokenizer import build_tokenizer

    disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    base_tokenizer = build_tokenizer()
    base_tokenizer.normalizer = normalizers.Sequence(
        []
    )  # usual tokenizers do not convert to upper case, and are faster for it
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base_tokenizer, pad_token="<pad>", unk_token="<unk>")
    head, count = directory / "head.fasta", 0
    with dnaio.open(fasta, open_threads=0) as records, open(head, "w", encoding="utf-8") as out:
        for record in records:
            out.write(f">{record.name}\n{record.sequence}\n")
            count += len(record)
            if count >= residues:
                break

    def read() -> Iterator[dict]:
        with dnaio.open(head, open_threads=0) as records:
            yield from ({"name": record.name, "sequence": record.sequence} for record in records)

    def tokenize(batch: dict) -> dict:
        return tokenizer(batch["sequence"], truncation=True, max_length=512, padding="max_length")

    def run() -> None:
        rows = Dataset.from_generator(read, cache_dir=str(directory / "cache"))
        rows.map(tokenize, batched=True, remove_columns=rows.column_names).save_to_disk(directory / "usual")

    return count / on_one_core(run), count


def _translate(fasta: Path) -> float:
    """Return residues per second of `bytes.translate` alone on one core."""
    with open(fasta, "rb") as file:
        text = file.read(2**26).replace(b"\n", b"")
    return len(text) / on_one_core(lambda: encode_bytes(text))
