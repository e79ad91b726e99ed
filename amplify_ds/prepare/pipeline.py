"""Turn sources into the files of shards, in three stages of tasks (`tasks.py`).

Inspect: hash every input file, for the manifest, and find its chunks. Scatter: clean every chunk of the inputs
(`clean.py`), count what is dropped by reason, and write the rest as sorted runs (`external_sort.py`); the same for the
excluded inputs. Pack: read a range of the shuffled order from all runs, without duplicates and excluded sequences; cut
the sequences into windows; shuffle the windows, so that those of one long protein do not end up side by side; pack them
into rows (`amplify_ds.data.packing`). Each range becomes a shard.

The sequences determine how many shards there are, and the content and order of each. So the bytes depend on the
sequences, the settings and the seed, not on the order of the input, its format, its chunks or the number of workers.
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
from amplify_ds.prepare.readers import wrap_errors
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.tasks import Progress, Task, Workers, do_tasks, run_tasks
from amplify_ds.vocab import PAD, TOKENS

MEGABYTE = 10**6
INSPECTED = 2**20  # bytes read at a time
_WRITTEN = 2**20  # bytes written at a time


class Inspected(NamedTuple):
    """The sha256 of the sources that are files, and the bytes at which they can be cut, by version."""

    hashes: dict[str, str]
    cuts: dict[str, list[int]]

    def chunks(self, source: Source) -> list[Chunk]:
        return source.chunks(self.cuts.get(source.version, []))


def inspect_inputs(sources: Sequence[Source], work: Path, workers: Workers) -> Inspected:
    """Read every source that is a file once: return its hash and where it can be cut."""
    files = {source.version: (source.path, source.bytes or 0, source.cutter) for source in sources if source.path}
    tasks = [
        Task([version, rows.CHUNK_BYTES], size, partial(_inspect, path, cutter))
        for version, (path, size, cutter) in files.items()
    ]
    results = dict(zip(files, run_tasks("inspect", tasks, work, workers, "B")))
    return Inspected(
        {version: result["sha256"] for version, result in results.items()},
        {version: result["cuts"] for version, result in results.items()},
    )


def scatter_inputs(
    inputs: Sequence[Source],
    exclude: Sequence[Source],
    inspected: Inspected,
    rules: Rules,
    settings: dict,
    work: Path,
    workers: Workers,
) -> tuple[list[dict], list[dict]]:
    """Write the runs of the inputs and of the excluded sources; return the results of their chunks, with `source`."""
    common = {key: settings[key] for key in ("seed", "validation_fraction", "shard_megabytes")}
    groups = [(inputs, rules, common), (exclude, rules.sequence_rules(), common | {"validation_fraction": 0.0})]
    tasks, origins = [], []
    for group, (sources, applied, options) in enumerate(groups):
        for source in sources:
            for index, chunk in enumerate(inspected.chunks(source)):
                depends = [source.version, index, chunk.name, vars(applied), options]
                tasks.append(Task(depends, chunk.bytes, partial(_scatter, chunk, applied, options)))
                origins.append((group, source.name))
    results: tuple[list[dict], list[dict]] = ([], [])
    for result, (group, name) in zip(run_tasks("scatter", tasks, work, workers, "B"), origins):
        results[group].append(result | {"source": name})
    return results


def pack_part(
    part: str, scattered: Sequence[dict], excluded: Sequence[dict], settings: dict, work: Path, workers: Workers
) -> list[dict]:
    """Write the shards of a part ("all", "train" or "validation") into `work`; return the results in order.

    Rank 0 waits for the other ranks; these return nothing.
    """
    runs = [work / name for result in scattered for name in result["runs"].get(part, ())]
    exclude_runs = [work / name for result in excluded for name in result["runs"]["all"]]
    tokens = sum(result["tokens"].get(part, 0) for result in scattered)
    count = max(1, -(-tokens // (settings["shard_megabytes"] * MEGABYTE)))
    names = hashlib.sha256("\n".join(run.name for run in (*runs, *exclude_runs)).encode()).hexdigest()
    tasks = [
        Task(
            [names, len(exclude_runs), settings, number, count],
            tokens // count,
            partial(_pack, runs, exclude_runs, number, count, settings),
        )
        for number in range(count)
    ]
    run = run_tasks if workers.rank.number == 0 else do_tasks
    return run(f"pack_{part}", tasks, work, workers, "tokens") or []


def check_unchanged(sources: Sequence[Source], reading: Reading) -> None:
    """Raise AmplifyError for a file that was changed during the build: its chunks may be of two versions."""
    for source in sources:
        if source.path and version_of(source.path, reading) != source.version:
            raise AmplifyError(
                f"{source.path} was changed while it was read. Run the same command again, and do not change inputs "
                "meanwhile: unchanged files are not read again."
            )


def _inspect(path: Path, make_cutter: Callable[[], rows.Cutter] | None, stem: Path, progress: Progress) -> dict:
    digest, cutter = hashlib.sha256(), make_cutter and make_cutter()
    with wrap_errors(str(path)), open(path, "rb") as file:
        while block := file.read(INSPECTED):
            digest.update(block)
            if cutter:
                cutter.feed(block)
            progress(len(block))
    return {"sha256": digest.hexdigest(), "cuts": cutter.cuts if cutter else []}


def _scatter(chunk: Chunk, rules: Rules, options: dict, stem: Path, progress: Progress) -> dict:
    """Clean a chunk of the input and write it as runs of at most about half a shard; return the counts and runs."""
    cleaner, records, size = Cleaner(rules), 0, 0
    sequences: list[bytes] = []
    identities: list[bytes] = []
    names = ("train", "validation") if options["validation_fraction"] else ("all",)
    runs: dict[str, list[str]] = {name: [] for name in names}
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()

    def write() -> None:
        fraction = options["validation_fraction"]
        parts = _split(sequences, identities, fraction) if fraction else [(sequences, identities)]
        for name, (some, hashes) in zip(names, parts):
            if some:
                run = stem.with_name(f"{stem.name}.{name}-{len(runs[name])}")
                write_run(run, some, hashes, options["seed"], rules.duplicates == "drop")
                runs[name].append(run.name)
                counts[name] += len(some)
                tokens[name] += sum(map(len, some)) + 2 * len(some)
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
        if size > options["shard_megabytes"] * MEGABYTE / 2:
            write()
            size = 0
    write()
    return {
        "records": records,
        "mended": cleaner.normalised,
        "rejected": cleaner.rejected,
        "noted": cleaner.noted,
        "runs": runs,
        "sequences": counts,
        "tokens": tokens,
    }


def _split(
    sequences: Sequence[bytes], identities: Sequence[bytes], fraction: float
) -> list[tuple[list[bytes], list[bytes]]]:
    """Return (sequences, identities) for training and for validation, chosen by each sequence's hash, not the seed."""
    halves = np.frombuffer(b"".join(identities), dtype=">u8")[1::2].astype(np.float64) / 2.0**64
    held_out = halves < fraction
    return [(list(compress(sequences, mask)), list(compress(identities, mask))) for mask in (~held_out, held_out)]


def _pack(
    runs: Sequence[Path],
    exclude_runs: Sequence[Path],
    number: int,
    count: int,
    settings: dict,
    stem: Path,
    progress: Progress,
) -> dict:
    """Write shard `number` of `count`; return its counts and its entry in the manifest (None if it is empty)."""
    part = read_slice(runs, exclude_runs, bounds_of(number, count), settings["rules"]["duplicates"] == "drop")
    row_tokens, max_length, seed = settings["row_tokens"], settings["max_length"], settings["seed"]
    lengths, frequencies = np.unique(part.lengths - 2, return_counts=True)
    token_counts = np.zeros(len(TOKENS), dtype=np.int64)
    result = {
        "duplicates": part.duplicates,
        "excluded": part.excluded,
        "lengths": list(zip(lengths.tolist(), frequencies.tolist())),
    }
    if not len(part.lengths):
        return result | {"token_counts": token_counts.tolist(), "shard": None}

    if settings["windows"] == "tile":
        sequence, start, stop = tile(part.lengths, max_length)
    else:
        sequence, start, stop = crop(part.lengths, max_length, scramble(part.halves, seed))
    order = permute(np.arange(len(sequence)), len(sequence), (seed, number))
    first = (part.starts[sequence] + start)[order]
    length = (stop - start)[order]
    rows = list(pack(length.tolist(), row_tokens))
    row_starts = np.cumsum([0, *map(len, rows)])
    packed = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(length))

    def chunks() -> Iterator[bytes]:
        tokens = part.tokens.data
        begin, end = first.tolist(), (first + length).tolist()
        pad = bytes([PAD])
        step = max(1, _WRITTEN // row_tokens)
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

    entry = write_shard(stem, row_tokens, chunks(), length[packed], row_starts)
    token_counts[PAD] = 0
    return result | {"token_counts": token_counts.tolist(), "shard": entry}


def _count(chunk: bytes) -> np.ndarray:
    """Return the count of each token, int64 [27]. Counts two tokens at a time, which is twice as fast."""
    pairs = np.frombuffer(chunk, dtype=np.uint16, count=len(chunk) // 2)
    table = np.bincount(pairs, minlength=2**16).reshape(256, 256)
    counts = table.sum(axis=0) + table.sum(axis=1)
    if len(chunk) % 2:
        counts[chunk[-1]] += 1
    return counts[: len(TOKENS)]
