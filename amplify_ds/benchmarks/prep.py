"""Measure data preparation on this machine: `python -m amplify_ds.benchmark prep`.

The input is made of real proteins: pieces of the bundled ones, one residue in twenty changed, joined to the lengths of
UniRef (log-normal, mean 350). Each run is a process of its own, held to as many cores as it has workers; time is from
its start to the finished directory, on uncompressed FASTA. The usual pipeline (dnaio, `datasets.map` in batches, fast
tokenizer, padding to 512) gets the head of the same file, as it is so much slower, and starts with everything imported;
`bytes.translate` alone is the limit. Tables are made of the proteins of the small file and compared with it.
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
_BLOCK = 2**24  # residues made at a time
_MEAN_LENGTH, _SPREAD = 350, 0.65
_LINE = 60
_ONE_SHARD = 195_000_000  # residues that fill one shard of the default size: memory does not grow from there on


class Measured(NamedTuple):
    """seconds from start to end, those of them in which a core was at work (others may share the machine), residues in
    the result, peak memory of the largest process in bytes, share of the rows that is full."""

    seconds: float
    busy: float
    residues: int
    memory: int
    efficiency: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--residues",
        type=float,
        default=2e9,
        metavar="N",
        help="of the input; it needs 5 bytes of disk for each (default: 2e9)",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="to compare with one (default: 2)")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if not EXAMPLES.is_dir():
        raise AmplifyError(f"there is no {EXAMPLES}: the benchmark needs the repository, not only the package.")
    place = Path(tempfile.mkdtemp(prefix="benchmark-", dir=options.directory))
    try:
        _prep(place, int(options.residues), options.workers)
    finally:
        shutil.rmtree(place)


def _prep(place: Path, residues: int, workers: int) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"data preparation, {residues:,} residues of resampled proteins, {cores} cores", flush=True)
    small, large = place / "small.fasta", place / "large.fasta"
    few = min(residues // 10, _ONE_SHARD)
    make_fasta(small, few)
    make_fasta(large, residues)
    usual, sample = _usual_pipeline(place, small)
    limit = _translate(large)
    tenth, one = _build(place, small, 1), _build(place, large, 1)
    lines = [
        ("`bytes.translate` alone, the limit", f"{limit / 1e6:,.0f} million residues/s"),
        ("one core, FASTA to finished shards", f"{one.residues / one.seconds / 1e6:.1f} million residues/s"),
        ("  while the core was at work on it", f"{one.residues / one.busy / 1e6:.1f} million residues/s"),
        (f"datasets.map, the same core ({sample:,} residues)", f"{usual / 1e6:.2f} million residues/s"),
        ("  times slower", f"{one.residues / one.seconds / usual:.0f}"),
        ("rows full", f"{one.efficiency:.2%}"),
        (f"peak memory, {few:,} residues", f"{tenth.memory / 1e6:,.0f} MB"),
        (f"peak memory, {residues:,} residues", f"{one.memory / 1e6:,.0f} MB ({one.memory / tenth.memory - 1:+.0%})"),
    ]
    if 1 < workers <= cores:
        many = _build(place, large, workers)
        speed = (
            f"{many.residues / many.seconds / 1e6:.1f} million residues/s, {one.seconds / many.seconds:.2f} times one"
        )
        lines += [(f"{workers} workers", speed), ("  peak memory of one", f"{many.memory / 1e6:,.0f} MB")]
    for label, quoted in (("CSV, one core", False), ("CSV, each cell in quotes and of several lines", True)):
        rows = place / "small.csv"
        make_csv(rows, small, quoted)
        csv = _build(place, rows, 1)
        speed = f"{csv.residues / csv.busy / 1e6:.1f} million residues/s of its core's time"
        lines.append((label, f"{speed}, {tenth.busy / csv.busy:.2f} times FASTA"))
    print(table(lines))


def make_shards(place: Path, residues: int, *options: object) -> Path:
    """Shards in `place` of such proteins, built with these options."""
    make_fasta(place / "some.fasta", residues)
    words = [*BUILD_SHARDS, "--input", place / "some.fasta", "--output", place / "shards", *options]
    if subprocess.run([str(word) for word in words], stdout=subprocess.DEVNULL).returncode:
        raise AmplifyError("build_shards.py failed, see above.")
    return place / "shards"


def make_csv(path: Path, fasta: Path, quoted: bool) -> None:
    """Write the proteins of `fasta` as a table of names and sequences; quoted: with the lines that they have there."""
    around, within = (b'"', b"\n") if quoted else (b"", b"")
    with open(fasta, "rb") as file, open(path, "wb") as out:
        out.write(b"name,sequence\n")
        lines: list[bytes] = []
        for line in chain(file, [b">"]):
            if line.startswith(b">") and lines:
                name, *sequence = lines
                out.writelines((around, name, around, b",", around, within.join(sequence), around, b"\n"))
                lines = []
            lines.append(line.strip().removeprefix(b">"))


def make_fasta(path: Path, residues: int) -> None:
    """Write about `residues` residues of resampled real proteins to `path`."""
    draw = np.random.default_rng(0)
    with gzip.open(EXAMPLES / "train.fasta.gz") as file:
        sequences = b"".join(line.strip() for line in file if not line.startswith(b">"))
    real = np.frombuffer(sequences, dtype=np.uint8)
    letters = np.frombuffer(RESIDUES.encode(), dtype=np.uint8)
    number = 0
    with open(path, "wb") as out:
        while residues > 0:
            size = min(residues, _BLOCK)
            residues -= size
            drawn = np.tile(real, -(-size // len(real)) + 1)[draw.integers(len(real)) :][:size]
            changed = draw.random(size) < 0.05
            drawn[changed] = draw.choice(letters, changed.sum())
            ends = np.cumsum(_lengths(draw, size)).tolist()
            text, start = drawn.tobytes(), 0
            for end in (end for end in ends if end <= size):
                out.write(
                    b">sp|P%08d|BENCH_%d Resampled protein OS=Homo sapiens OX=9606 PE=1 SV=1\n" % (number, number)
                )
                out.writelines(text[at : min(at + _LINE, end)] + b"\n" for at in range(start, end, _LINE))
                number, start = number + 1, end


def _lengths(draw: np.random.Generator, residues: int) -> np.ndarray:
    location = np.log(_MEAN_LENGTH) - _SPREAD**2 / 2
    return np.clip(draw.lognormal(location, _SPREAD, residues // _MEAN_LENGTH + 1), 20, 20_000).astype(np.int64)


def _build(place: Path, fasta: Path, workers: int) -> Measured:
    """Run build_shards.py as a user does, on as many cores as workers."""
    output = place / "shards"
    words = [*BUILD_SHARDS, "--input", fasta, "--output", output, "--workers", workers]
    cores = sorted(os.sched_getaffinity(0))[:workers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in words],
        env=environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AmplifyError(f"build_shards.py ended with {process.returncode}, see above.")
    manifest = Shards(output).manifest
    shutil.rmtree(output)
    busy = usage.ru_utime + usage.ru_stime
    return Measured(
        seconds, busy, manifest["counts"]["residues"], usage.ru_maxrss * 1024, manifest["packing_efficiency"]
    )


def _usual_pipeline(place: Path, fasta: Path, residues: int = 4_000_000) -> tuple[float, int]:
    """Return (residues per second, residues): FASTA to a dataset of padded ids with `datasets`, on one core.

    All residues are counted, also those that truncation to 512 tokens drops.
    """
    import dnaio
    from datasets import Dataset, disable_progress_bars
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    from amplify_ds.hub.tokenizer import build_tokenizer

    disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    bare = build_tokenizer()
    bare.normalizer = normalizers.Sequence([])  # the usual one raises no lower case, and is faster for it
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", unk_token="<unk>")
    head, count = place / "head.fasta", 0
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
        rows = Dataset.from_generator(read, cache_dir=str(place / "cache"))
        rows.map(tokenize, batched=True, remove_columns=rows.column_names).save_to_disk(place / "usual")

    return count / on_one_core(run), count


def _translate(fasta: Path) -> float:
    with open(fasta, "rb") as file:
        text = file.read(2**26).replace(b"\n", b"")
    return len(text) / on_one_core(lambda: encode_bytes(text))
