"""Protein sequences (FASTA) -> shuffled, packed, memory-mapped shards that training reads.

    python data_prep/build_shards.py --input uniref50.fasta.gz --output data/train --exclude validation.fasta

The work is done in `pipeline.py`; this file is the command: it checks what was asked for, reuses what is already there,
and reports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fasta import FastaFile
from pipeline import build, identities
from report import counts, table

from amplify_ds.data.shard_writer import building, write_manifest
from amplify_ds.data.shards import MANIFEST, Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError, command

DESCRIPTION = """\
Turn protein sequences (FASTA, plain or gzip) into shards: the directory of packed,
memory-mapped rows that training and evaluation read.

Sequences are cleaned (blanks, lower case and a * at the end are mended; sequences with
any of B J O U X Z or other characters are dropped), exact duplicates are dropped, the
rest is shuffled, cut into windows and packed into rows of equal size. Everything that
is dropped is counted by reason. The same sequences, options and seed give the same
bytes. DIR appears only when it is complete; if it already is, it is reused."""

EXAMPLE = """\
example: a validation set, then a training set that shares no sequence with it
  python data_prep/build_shards.py --input valid.fasta.gz --output data/valid
  python data_prep/build_shards.py --input uniprot.fasta.gz --exclude valid.fasta.gz --output data/train
  python data_prep/inspect_shards.py data/train --verify"""

LONGEST_WINDOW = 2**16 - 1  # window lengths are stored as uint16


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    settings = {
        "max_length": options.max_length,
        "row_tokens": options.row_tokens,
        "windows": "tile",
        "seed": options.seed,
    }
    _check(settings)
    inputs, exclude = [FastaFile(path) for path in options.input], [FastaFile(path) for path in options.exclude]
    output = options.output.resolve()
    if output.exists() and not _is_empty(output):
        _check_same(output, settings, inputs, exclude)
        print(f"{options.output} is complete, of the same sequences and settings: reused")
    else:
        with building(output) as directory:
            write_manifest(directory, build(directory, inputs, exclude, settings))
        manifest = Shards(output).manifest
        shards = ("shards", f"{len(manifest['shards'])} in {options.output}")
        print(table([*counts(manifest), shards]))
    print(f"next: python data_prep/inspect_shards.py {options.output} --verify")


def _check(settings: dict) -> None:
    """AmplifyError for settings with which no shards can be made."""
    max_length, row_tokens, seed = settings["max_length"], settings["row_tokens"], settings["seed"]
    if not 3 <= max_length <= LONGEST_WINDOW:
        raise AmplifyError(f"--max-length is {max_length}, expected 3 (<bos>, a residue, <eos>) to {LONGEST_WINDOW}.")
    if row_tokens < max_length:
        raise AmplifyError(
            f"--row-tokens is {row_tokens}, less than --max-length, {max_length}: a window would not "
            "fit into a row. Rows fill best at 4 times --max-length or more."
        )
    if not 0 <= seed < 2**63:
        raise AmplifyError(f"--seed is {seed}, expected 0 to 2^63 - 1.")


def _is_empty(output: Path) -> bool:
    return output.is_dir() and not any(output.iterdir())


def _check_same(output: Path, settings: dict, inputs: Sequence[FastaFile], exclude: Sequence[FastaFile]) -> None:
    """AmplifyError if `output`, which exists, is anything but the shards that are asked for."""
    if not (output / MANIFEST).exists():
        raise AmplifyError(
            f"{output} is a file or holds other files, and no {MANIFEST}. Choose a new or empty "
            "--output directory; nothing was changed."
        )
    manifest = Shards(output).manifest
    differences = [
        f"{name}: {manifest.get(name)} there, {value} here"
        for name, value in settings.items()
        if manifest.get(name) != value
    ]
    for name, files in (("inputs", inputs), ("exclude", exclude)):
        there = sorted((entry["name"], entry["bytes"]) for entry in manifest[name])
        here = sorted((file.path.name, file.bytes) for file in files)
        if there != here:
            differences.append(f"{name}: {there} there, {here} here (name, bytes)")
            continue
        for file in files:
            file.hash()
        if identities(files) != manifest[name]:
            differences.append(f"{name}: files of the same names and sizes, but other contents")
    if not differences:
        verify(output)
    else:
        raise AmplifyError(
            f"{output} holds shards of other settings or sequences: {'; '.join(differences)}. Choose "
            "another --output directory, or delete this one; nothing was changed."
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="FASTA files, plain or gzip (seen from the content, not the name)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory to make; must not exist yet, be empty, or hold the same shards",
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="FASTA files whose sequences are dropped from the input where they are identical, such "
        "as a validation set (default: none)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        default=512,
        metavar="TOKENS",
        help="longest window in tokens, <bos> and <eos> counted; longer sequences are cut into "
        "windows of nearly equal length, nothing is lost (default: %(default)s)",
    )
    parser.add_argument(
        "--row-tokens",
        type=int,
        default=8192,
        metavar="TOKENS",
        help="tokens in a row, the unit in which training reads; 4 x --max-length or more fill over "
        "99 %% (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the shuffle (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(main)
