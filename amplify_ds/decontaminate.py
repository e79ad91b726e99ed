"""Find the training sequences that are similar to a validation sequence, so that they can be left out of the shards.

Every chunk of the input is cleaned as for shards and searched with MMseqs2 (`prepare/mmseqs.py`); what is similar is
written to a FASTA file, and what was searched and how to a second file beside it. build_shards.py --exclude takes the
first and copies the second into the manifest. --check searches finished shards in the same way, and fails if anything
is found.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from amplify_ds import bars
from amplify_ds.data.shard_writer import remove_leftovers, working, writing
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError, command
from amplify_ds.files import sha256, sync, write_json
from amplify_ds.prepare.chunks import Chunk, Source
from amplify_ds.prepare.clean import Cleaner, Rules
from amplify_ds.prepare.manifest import describe, proof_path
from amplify_ds.prepare.mmseqs import TEMPORARY, Criteria, find_similar, version, write_fasta
from amplify_ds.prepare.pipeline import check_unchanged, inspect_inputs
from amplify_ds.prepare.reading_options import Reading, add_arguments, reading_of
from amplify_ds.prepare.sources import find_sources
from amplify_ds.prepare.tasks import Progress, Task, run_tasks, workers
from amplify_ds.processes import check_workers, sigterm_interrupts
from amplify_ds.shell import next_commands
from amplify_ds.vocab import BOS, EOS, TOKENS

DESCRIPTION = """\
Find the training sequences that are similar to a validation sequence, with MMseqs2, and
write them to a FASTA file for build_shards.py --exclude; or, with --check, search
finished shards and fail if anything similar is left."""

EXAMPLE = """\
example:
  python data_prep/decontaminate.py --train uniref*.fasta.gz --validation valid.fasta.gz --output similar.fasta
  python data_prep/build_shards.py --input uniref*.fasta.gz --exclude valid.fasta.gz similar.fasta --output data/train
  python data_prep/decontaminate.py --check data/train --validation valid.fasta.gz
Antibodies, of which all are alike: --identity 0.99"""

_CHUNK = 2**26  # residues searched at a time: MMseqs2 then takes some 2 GB of memory
_TEXT = bytes(ord(token) if len(token) == 1 else ord("X") for token in TOKENS).ljust(256, b"X")
_ENDS = bytes([BOS, EOS])


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if not 0 < options.identity <= 1:
        raise AmplifyError(f"--identity is {options.identity}, expected a share above 0 and up to 1, such as 0.9.")
    if not 0 <= options.min_bits < math.inf:
        raise AmplifyError(f"--min-bits is {options.min_bits}, expected a finite number of 0 or more.")
    check_workers("--threads", options.threads)
    criteria = Criteria(options.identity, options.min_bits)
    version()
    reading = reading_of(options)
    held_out = find_sources(options.validation, reading, _tell)
    if options.check:
        with sigterm_interrupts():
            return _check(options.check, held_out, criteria, options.threads)
    output = options.output.resolve()
    _find(find_sources(options.train, reading, _tell), held_out, reading, output, criteria, options.threads)
    words = ["python", "data_prep/build_shards.py", "--input", *options.train, "--exclude", *options.validation, output]
    print(next_commands((*words, "--output", "SHARDS")))
    return 0


def _tell(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def _find(
    train: Sequence[Source],
    held_out: Sequence[Source],
    reading: Reading,
    output: Path,
    criteria: Criteria,
    threads: int,
) -> None:
    """Write the similar sequences of `train` to `output`, and the proof beside it."""
    if output.exists():
        remove_leftovers(output)
        raise AmplifyError(f"{output} exists; choose another --output, or delete it to search again.")
    with working(output) as place, workers(1) as crew:
        work = place.work
        for path in work.glob(f"{TEMPORARY}*"):  # of a search that was killed
            shutil.rmtree(path)
        queries = work / "held_out.txt"
        count = write_fasta(queries, _cleaned(held_out))
        inspected = inspect_inputs([*train, *held_out], work, crew)
        hashes = inspected.hashes
        basis = [criteria.describe(), [hashes.get(source.version, source.version) for source in held_out]]
        tasks = [
            Task([*basis, source.version, number], chunk.bytes, partial(_search, chunk, queries, criteria, threads))
            for source in train
            for number, chunk in enumerate(inspected.chunks(source))
        ]
        results = run_tasks("search", tasks, work, crew, "B")
        check_unchanged([*train, *held_out], reading)
        counts = {key: sum(result[key] for result in results) for key in ("records", "searched", "similar")}
        found = work / "similar.fasta"
        with writing(output):
            with open(found, "wb") as file:
                for name in (name for result in results for name in result["files"]):
                    file.write((work / name).read_bytes())
                if not counts["similar"]:
                    file.write(b">no sequence is similar\n")  # --exclude takes no empty file
            sync(found)
        proof = {
            "sha256": sha256(found),
            **criteria.describe(),
            "train": describe(train, hashes),
            "validation": describe(held_out, hashes),
            "counts": {**counts, "validation": count},
        }
        with writing(output):
            write_json(proof_path(output), proof)
            found.rename(output)
            sync(output.parent)
    print(f"{counts['similar']:,} of {counts['searched']:,} sequences are similar to one of {count:,}: {output}")


def _search(chunk: Chunk, held_out: Path, criteria: Criteria, threads: int, stem: Path, progress: Progress) -> dict:
    """Search a chunk of the training sequences; write those that are similar, in blocks of bounded memory."""
    cleaner = Cleaner(Rules())
    counts: Counter[str] = Counter()
    files: list[str] = []
    block: list[bytes] = []

    def search() -> None:
        found = find_similar([ids.translate(_TEXT) for ids in block], held_out, criteria, threads)
        path = stem.with_name(f"{stem.name}.{len(files)}.fasta")
        with writing(path), open(path, "wb") as file:
            for index, identity in sorted(found.items()):
                file.write(b">identity=%.3f\n%s\n" % (identity, block[index].translate(_TEXT)))
        files.append(path.name)
        counts.update(searched=len(block), similar=len(found))
        block.clear()

    size = 0
    for batch in chunk.read(progress):
        counts["records"] += batch.records
        kept = cleaner.clean(batch)
        block += kept
        size += sum(map(len, kept))
        if size > _CHUNK:
            search()
            size = 0
    search()
    return {"records": counts["records"], "searched": counts["searched"], "similar": counts["similar"], "files": files}


def _check(directory: Path, held_out: Sequence[Source], criteria: Criteria, threads: int) -> int:
    """Search the windows of all rows; AmplifyError if any is similar to a validation sequence."""
    shards = Shards(directory)
    searched, remaining = 0, []
    with tempfile.TemporaryDirectory(prefix="decontaminate-") as place:
        queries = Path(place) / "held_out.txt"
        count = write_fasta(queries, _cleaned(held_out))
        with bars.bar(total=shards.num_rows, desc="checking", unit="row") as bar:
            step = max(1, _CHUNK // shards.row_tokens)
            for first in range(0, shards.num_rows, step):
                rows = range(first, min(first + step, shards.num_rows))
                windows = [window for row in rows for window in _windows(shards, row)]
                found = find_similar(windows, queries, criteria, threads)
                remaining += [(identity, windows[index]) for index, identity in sorted(found.items())]
                searched += len(windows)
                bar.update(len(rows))
    if remaining:
        identity, window = max(remaining)
        raise AmplifyError(
            f"{directory}: {len(remaining):,} of {searched:,} windows are at least {criteria.identity:.0%} identical "
            f"to a validation sequence, for example ({identity:.1%}) {window[:60].decode()}. Find what to leave out "
            "with decontaminate.py --train, and build the shards again with --exclude. Was that done? Then these are "
            "parts of proteins that as a whole are less alike: find them with a lower --identity there."
        )
    print(f"none of the {searched:,} windows of {directory} is {criteria.identity:.0%} identical to one of {count:,}")
    return 0


def _windows(shards: Shards, row: int) -> list[bytes]:
    """Return the windows of a row as text, without <bos> and <eos>."""
    tokens, lengths = shards.row(row)
    bounds = [0, *np.cumsum(lengths).tolist()]
    ids = tokens.tobytes()
    return [ids[start:stop].strip(_ENDS).translate(_TEXT) for start, stop in zip(bounds, bounds[1:])]


def _cleaned(sources: Sequence[Source]) -> Iterator[bytes]:
    """Yield the sequences of all sources as text; what cannot be cleaned cannot be in the shards either."""
    cleaner = Cleaner(Rules(ambiguous="keep"))
    for source in sources:
        for batch in source.read():
            yield from (ids.translate(_TEXT) for ids in cleaner.clean(batch))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--train", nargs="+", metavar="INPUT", help="training sequences, as build_shards.py --input")
    what.add_argument("--check", type=Path, metavar="DIR", help="shards to search instead")
    parser.add_argument("--validation", nargs="+", required=True, metavar="INPUT", help="sequences to be unlike")
    parser.add_argument("--output", type=Path, metavar="FILE", help="FASTA file to write the similar ones to")
    parser.add_argument("--identity", type=float, default=0.9, metavar="SHARE", help="(default: %(default)s)")
    parser.add_argument(
        "--min-bits",
        type=float,
        default=50.0,
        metavar="BITS",
        help="score from which an alignment counts; 25 identical residues have about 50 (default: %(default)s)",
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=int, default=cores, metavar="N", help="of MMseqs2 (default: the cores there are, %(default)s)"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if bool(options.train) != bool(options.output):
        parser.error("--train needs --output FILE, --check has none")
    return options


if __name__ == "__main__":
    command(main)
