"""Find the training sequences that are similar to a validation sequence, so that they can be left out of the shards.

Every chunk of the input is cleaned as for shards and searched with MMseqs2 (`prepare/mmseqs.py`). The similar sequences
are written to a FASTA file; a proof beside it records criteria, files and counts of the search. build_shards.py
--exclude takes the FASTA file and copies the proof into the manifest. --check searches finished shards in the same way,
and fails if any window is similar.
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
from amplify_ds.prepare.tasks import Progress, Task, run_tasks, start_workers
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
For antibodies, which all resemble each other, use --identity 0.99"""

_CHUNK = 2**26  # residues searched at a time, for which MMseqs2 needs about 2 GB of memory
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
    held_out = find_sources(options.validation, reading, _print_note)
    if options.check:
        with sigterm_interrupts():
            return _check(options.check, held_out, criteria, options.threads)
    output = options.output.resolve()
    _find(find_sources(options.train, reading, _print_note), held_out, reading, output, criteria, options.threads)
    build = ["python", "data_prep/build_shards.py", "--input", *options.train, "--exclude", *options.validation, output]
    print(next_commands((*build, "--output", "SHARDS")))
    return 0


def _print_note(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def _find(
    train: Sequence[Source],
    held_out: Sequence[Source],
    reading: Reading,
    output: Path,
    criteria: Criteria,
    threads: int,
) -> None:
    """Write the sequences of `train` that are similar to one of `held_out` to `output`, and the proof beside it."""
    if output.exists():
        remove_leftovers(output)
        raise AmplifyError(f"{output} exists; choose another --output, or delete it to search again.")
    with working(output) as workspace, start_workers(1) as workers:
        work = workspace.work
        for path in work.glob(f"{TEMPORARY}*"):  # of a search that was killed
            shutil.rmtree(path)
        queries = work / "held_out.txt"
        count = write_fasta(queries, _cleaned(held_out))
        inspected = inspect_inputs([*train, *held_out], work, workers)
        hashes = inspected.hashes
        basis = [criteria.describe(), [hashes.get(source.version, source.version) for source in held_out]]
        tasks = [
            Task([*basis, source.version, number], chunk.bytes, partial(_search, chunk, queries, criteria, threads))
            for source in train
            for number, chunk in enumerate(inspected.chunks(source))
        ]
        results = run_tasks("search", tasks, work, workers, "B")
        check_unchanged([*train, *held_out], reading)
        counts = {key: sum(result[key] for result in results) for key in ("records", "searched", "similar")}
        similar = work / "similar.fasta"
        with writing(output):
            with open(similar, "wb") as file:
                for name in (name for result in results for name in result["files"]):
                    file.write((work / name).read_bytes())
                if not counts["similar"]:
                    file.write(b">no sequence is similar\n")  # --exclude refuses an empty file
            sync(similar)
        proof = {
            "sha256": sha256(similar),
            **criteria.describe(),
            "train": describe(train, hashes),
            "validation": describe(held_out, hashes),
            "counts": {**counts, "validation": count},
        }
        with writing(output):
            write_json(proof_path(output), proof)
            similar.rename(output)
            sync(output.parent)
    print(f"{counts['similar']:,} of {counts['searched']:,} sequences are similar to one of {count:,}: {output}")


def _search(chunk: Chunk, held_out: Path, criteria: Criteria, threads: int, stem: Path, progress: Progress) -> dict:
    """Search a chunk in blocks of bounded memory and write the similar sequences; return the counts and files."""
    cleaner = Cleaner(Rules())
    counts: Counter[str] = Counter()
    files: list[str] = []
    block: list[bytes] = []

    def search() -> None:
        similar = find_similar([ids.translate(_TEXT) for ids in block], held_out, criteria, threads)
        path = stem.with_name(f"{stem.name}.{len(files)}.fasta")
        with writing(path), open(path, "wb") as file:
            for index, identity in sorted(similar.items()):
                file.write(b">identity=%.3f\n%s\n" % (identity, block[index].translate(_TEXT)))
        files.append(path.name)
        counts.update(searched=len(block), similar=len(similar))
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
    """Search the windows of all rows; raise AmplifyError if any is similar to a validation sequence."""
    shards = Shards(directory)
    searched, similar = 0, []
    with tempfile.TemporaryDirectory(prefix="decontaminate-") as temporary:
        queries = Path(temporary) / "held_out.txt"
        count = write_fasta(queries, _cleaned(held_out))
        with bars.bar(total=shards.num_rows, desc="checking", unit="row") as bar:
            step = max(1, _CHUNK // shards.row_tokens)
            for first in range(0, shards.num_rows, step):
                rows = range(first, min(first + step, shards.num_rows))
                windows = [window for row in rows for window in _windows(shards, row)]
                identities = find_similar(windows, queries, criteria, threads)
                similar += [(identity, windows[index]) for index, identity in sorted(identities.items())]
                searched += len(windows)
                bar.update(len(rows))
    if similar:
        identity, window = max(similar)
        raise AmplifyError(
            f"{directory}: {len(similar):,} of {searched:,} windows are at least {criteria.identity:.0%} identical "
            f"to a validation sequence, for example ({identity:.1%}) {window[:60].decode()}. Find the sequences to "
            "leave out with decontaminate.py --train, and build the shards again with --exclude. If you have done so, "
            "these windows are parts of proteins that as a whole are less similar: run --train with a lower --identity."
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
    """Yield the sequences of all sources as text, without those that are dropped and so cannot be in the shards."""
    cleaner = Cleaner(Rules(ambiguous="keep"))
    for source in sources:
        for batch in source.read():
            yield from (ids.translate(_TEXT) for ids in cleaner.clean(batch))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--train", nargs="+", metavar="INPUT", help="training sequences, as for build_shards.py --input")
    mode.add_argument("--check", type=Path, metavar="DIR", help="shards to search instead")
    parser.add_argument(
        "--validation", nargs="+", required=True, metavar="INPUT", help="validation sequences to compare with"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="FASTA file for the similar training sequences")
    parser.add_argument(
        "--identity",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of identical residues in the alignment from which sequences are similar (default: %(default)s)",
    )
    parser.add_argument(
        "--min-bits",
        type=float,
        default=50.0,
        metavar="BITS",
        help="lowest score of an alignment that counts; 25 identical residues score about 50 (default: %(default)s)",
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=int, default=cores, metavar="N", help="threads of MMseqs2 (default: all cores, %(default)s)"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if bool(options.train) != bool(options.output):
        parser.error("--train needs --output FILE; --check does not take it")
    return options


if __name__ == "__main__":
    command(main)
