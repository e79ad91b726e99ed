"""Sources -> the files of shard directories and their manifests, in three stages of tasks (`tasks.py`).

Inspect: every input file is hashed, for the manifest, and its chunks are found. Scatter: every chunk of the inputs is
cleaned (`clean.py`), or dropped and counted by reason, and written as sorted runs (`external_sort.py`); excluded
inputs are processed likewise. Pack: a range of the shuffled order is read from all runs, without duplicates and
excluded sequences; its sequences are cut into windows; the windows are shuffled once more, so that those of one long
protein do not end up side by side, and packed into rows
(`amplify_ds.data.packing`): a shard.

The sequences alone say how many shards there are, what is in each and in which order. So the bytes depend on the
sequences, the settings and the seed: not on the order of the input, its format, its chunks or who worked on them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amplify_ds.data.order import permute
from amplify_ds.data.packing import crop, pack, tile
from amplify_ds.data.shard_writer import write_shard
from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import rows
from amplify_ds.prepare.chunks import Chunk, Source, version_of
from amplify_ds.prepare.clean import Cleaner, Rules
from amplify_ds.prepare.external_sort import bounds_of, identity, read_slice, scramble, write_run
from amplify_ds.prepare.readers import refusing
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.tasks import Progress, Task, Workers, do_tasks, run_tasks
from amplify_ds.vocab import PAD, TOKENS

MEGABYTE = 10**6
INSPECTED = 2**20  # bytes read at a time
_PIECE = 2**20  # bytes written at a time


class Inspected(NamedTuple):
    """Of the sources that are files, by version: the sha256, and the places at which they can be cut."""

    hashes: dict[str, str]
    cuts: dict[str, list[int]]

    def chunks(self, source: Source) -> list[Chunk]:
        return source.chunks(self.cuts.get(source.version, []))


def inspect_inputs(sources: Sequence[Source], work: Path, crew: Workers) -> Inspected:
    """Read every source that is a file once: hash it, and find where it can be cut."""
    files = {source.version: (source.path, source.bytes or 0, source.cutter) for source in sources if source.path}
    tasks = [
        Task([version, rows.CHUNK_BYTES], size, partial(_inspect, path, cutter))
        for version, (path, size, cutter) in files.items()
    ]
    found = dict(zip(files, run_tasks("inspect", tasks, work, crew, "B")))
    return Inspected(
        {version: result["sha256"] for version, result in found.items()},
        {version: result["cuts"] for version, result in found.items()},
    )


def scatter_inputs(
    inputs: Sequence[Source],
    exclude: Sequence[Source],
    inspected: Inspected,
    rules: Rules,
    settings: dict,
    work: Path,
    crew: Workers,
) -> tuple[list[dict], list[dict]]:
    """Write the runs of the inputs and of what is excluded; return the results of their chunks, with their `source`."""
    shared = {key: settings[key] for key in ("seed", "validation_fraction", "shard_megabytes")}
    groups = [(inputs, rules, shared), (exclude, rules.of_sequences(), shared | {"validation_fraction": 0.0})]
    tasks, owners = [], []
    for number, (sources, applied, how) in enumerate(groups):
        for source in sources:
            for place, chunk in enumerate(inspected.chunks(source)):
                depends = [source.version, place, chunk.name, vars(applied), how]
                tasks.append(Task(depends, chunk.bytes, partial(_scatter, chunk, applied, how)))
                owners.append((number, source.name))
    found = [
        result | {"source": name} for result, (_, name) in zip(run_tasks("scatter", tasks, work, crew, "B"), owners)
    ]
    included, excluded = ([result for result, (owner, _) in zip(found, owners) if owner == group] for group in (0, 1))
    return included, excluded


def pack_part(
    part: str, scattered: Sequence[dict], excluded: Sequence[dict], settings: dict, work: Path, crew: Workers
) -> list[dict]:
    """Write the shards of a part ("all", "train" or "validation") into `work`; return the results in order.

    As number 0 of the ranks this waits for the others; they return nothing.
    """
    runs = [work / name for result in scattered for name in result["runs"].get(part, ())]
    barred = [work / name for result in excluded for name in result["runs"]["all"]]
    tokens = sum(result["tokens"].get(part, 0) for result in scattered)
    count = max(1, -(-tokens // (settings["shard_megabytes"] * MEGABYTE)))
    names = hashlib.sha256("\n".join(run.name for run in (*runs, *barred)).encode()).hexdigest()
    tasks = [
        Task(
            [names, len(barred), settings, place, count],
            tokens // count,
            partial(_pack, runs, barred, place, count, settings),
        )
        for place in range(count)
    ]
    do = run_tasks if crew.rank.number == 0 else do_tasks
    return do(f"pack_{part}", tasks, work, crew, "tokens") or []


def check_unchanged(sources: Sequence[Source], reading: Reading) -> None:
    """AmplifyError for a file that is no longer as it was found: what was read of it may be of two versions."""
    for source in sources:
        if source.path and version_of(source.path, reading) != source.version:
            raise AmplifyError(
                f"{source.path} was changed while it was read. Leave inputs alone and run the same command again: "
                "files that were not changed are not read again."
            )


def _inspect(path: Path, make_cutter: Callable[[], rows.Cutter] | None, stem: Path, progress: Progress) -> dict:
    digest, cutter = hashlib.sha256(), make_cutter and make_cutter()
    with refusing(str(path)), open(path, "rb") as file:
        while block := file.read(INSPECTED):
            digest.update(block)
            if cutter:
                cutter.feed(block)
            progress(len(block))
    return {"sha256": digest.hexdigest(), "cuts": cutter.cuts if cutter else []}


def _scatter(chunk: Chunk, rules: Rules, how: dict, stem: Path, progress: Progress) -> dict:
    """Clean a chunk of the input and write it as runs of about half a shard, or less."""
    cleaner, records, size = Cleaner(rules), 0, 0
    sequences: list[bytes] = []
    identities: list[bytes] = []
    names = ("train", "validation") if how["validation_fraction"] else ("all",)
    runs: dict[str, list[str]] = {name: [] for name in names}
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()

    def write() -> None:
        whole = sequences, identities
        for name, (texts, keys) in zip(names, _divide(*whole, how["validation_fraction"]) if names[1:] else [whole]):
            if keys:
                run = stem.with_name(f"{stem.name}.{name}-{len(runs[name])}")
                write_run(run, texts, keys, how["seed"], rules.duplicates == "drop")
                runs[name].append(run.name)
                counts[name] += len(keys)
                tokens[name] += sum(map(len, texts)) + 2 * len(texts)
        sequences.clear()
        identities.clear()

    for batch in chunk.read(progress):
        records += batch.records
        kept = cleaner.clean(batch)
        sequences += kept
        identities += map(identity, kept)
        residues = sum(map(len, kept))
        size += residues
        progress(0, residues)
        if size > how["shard_megabytes"] * MEGABYTE / 2:
            write()
            size = 0
    write()
    return {
        "records": records,
        "mended": cleaner.mended,
        "rejected": cleaner.rejected,
        "noted": cleaner.noted,
        "runs": runs,
        "sequences": counts,
        "tokens": tokens,
    }


def _divide(
    sequences: Sequence[bytes], identities: Sequence[bytes], fraction: float
) -> list[tuple[list[bytes], list[bytes]]]:
    """Return the two parts of the sequences and identities: a matter of each sequence's own hash, whatever the seed."""
    halves = np.frombuffer(b"".join(identities), dtype=">u8")[1::2].astype(np.float64) / 2.0**64
    held_out = halves < fraction
    return [(list(compress(sequences, mask)), list(compress(identities, mask))) for mask in (~held_out, held_out)]


def _pack(
    runs: Sequence[Path],
    barred: Sequence[Path],
    number: int,
    count: int,
    settings: dict,
    stem: Path,
    progress: Progress,
) -> dict:
    """Write shard `number` of `count`; return its entry in the manifest (None if it is empty) and what it counts."""
    found = read_slice(runs, barred, bounds_of(number, count), settings["rules"]["duplicates"] == "drop")
    row_tokens, max_length, seed = settings["row_tokens"], settings["max_length"], settings["seed"]
    lengths, times = np.unique(found.lengths - 2, return_counts=True)
    token_counts = np.zeros(len(TOKENS), dtype=np.int64)
    result = {
        "duplicates": found.duplicates,
        "excluded": found.excluded,
        "lengths": list(zip(lengths.tolist(), times.tolist())),
    }
    if not len(found.lengths):
        return result | {"token_counts": token_counts.tolist(), "shard": None}

    if settings["windows"] == "tile":
        sequence, start, stop = tile(found.lengths, max_length)
    else:
        sequence, start, stop = crop(found.lengths, max_length, scramble(found.halves, seed))
    arrival = permute(np.arange(len(sequence)), len(sequence), (seed, number))
    first = (found.starts[sequence] + start)[arrival]
    length = (stop - start)[arrival]
    rows = list(pack(length.tolist(), row_tokens))
    row_starts = np.cumsum([0, *map(len, rows)])
    placed = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(length))

    def chunks() -> Iterator[bytes]:
        tokens = found.tokens.data
        begin, end = first.tolist(), (first + length).tolist()
        pad = bytes([PAD])
        step = max(1, _PIECE // row_tokens)
        for index in range(0, len(rows), step):
            chunk = b"".join(
                [
                    b"".join([tokens[begin[window] : end[window]] for window in row]).ljust(row_tokens, pad)
                    for row in rows[index : index + step]
                ]
            )
            token_counts[:] += _count(chunk)
            progress(len(chunk), len(chunk))
            yield chunk

    entry = write_shard(stem, row_tokens, chunks(), length[placed], row_starts)
    token_counts[PAD] = 0
    return result | {"token_counts": token_counts.tolist(), "shard": entry}


def _count(chunk: bytes) -> np.ndarray:
    """Count every token, int64 [27]; two at a time, which is twice as fast."""
    pairs = np.frombuffer(chunk, dtype=np.uint16, count=len(chunk) // 2)
    table = np.bincount(pairs, minlength=2**16).reshape(256, 256)
    counts = table.sum(axis=0) + table.sum(axis=1)
    if len(chunk) % 2:
        counts[chunk[-1]] += 1
    return counts[: len(TOKENS)]
