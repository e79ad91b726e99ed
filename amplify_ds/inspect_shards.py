"""Inspect a directory of shards: a summary of the manifest, a check of every file, rows as text, a picture.

python data_prep/inspect_shards.py data/train --verify --show 0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from amplify_ds import bars
from amplify_ds.data.shard_writer import writing
from amplify_ds.data.shards import MANIFEST, REBUILD, Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError, command
from amplify_ds.extras import require
from amplify_ds.files import replacing
from amplify_ds.prepare.manifest_picture import PICTURES, UNIPROT, draw, frequencies
from amplify_ds.prepare.manifest_text import counts, table
from amplify_ds.processes import check_workers
from amplify_ds.vocab import BOS, EOS, decode

DESCRIPTION = """\
Summarise a directory of shards: where its sequences come from, how many there are and
how long, how often each residue occurs, how full the rows are. With --verify, check
every file against its checksum; with --show, print the proteins of a row; with --fasta,
write all windows as FASTA; with --plot, draw the summary."""

EXAMPLE = """\
example:
  python data_prep/inspect_shards.py data/train --verify --show 0
In Python, a shard is one line: numpy.load("data/train/shard-00000.tokens.npy")"""

QUANTILES = {"shortest": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "longest": 1.0}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    _check(options)
    shards = Shards(options.directory)
    try:
        summary = _summary(shards)
    except KeyError as error:
        raise AmplifyError(
            f"{shards.path / MANIFEST} lacks {error}, which build_shards.py writes: these shards can be read, but not "
            f"summarised. {REBUILD}"
        ) from None
    print(table(summary))
    if options.verify:
        size = sum(file["bytes"] for file in shards.files().values())
        with bars.bar(total=size, desc="verifying", unit="B", unit_scale=True) as bar:
            count = verify(options.directory, bar.update, options.workers)
        print(f"\nall {count} files match their checksums, and their contents are sound")
    if options.show is not None:
        print("\n" + _show(shards, options.show))
    if options.fasta:
        print(f"\n{_write_fasta(shards, options.fasta):,} windows written to {options.fasta}")
    if options.plot:
        draw(shards, options.plot)
        print(f"\npicture written to {options.plot}")


def _check(options: argparse.Namespace) -> None:
    """Raise AmplifyError for options that would fail after the files are read."""
    check_workers("--workers", options.workers)
    if options.fasta and options.fasta.exists():
        raise AmplifyError(f"{options.fasta} exists; choose another --fasta, or delete it.")
    if options.plot and options.plot.suffix not in PICTURES:
        raise AmplifyError(f"--plot is {options.plot}, expected a name that ends in {' '.join(PICTURES)}.")
    if options.plot:
        require("matplotlib", "--plot")
    for file in (options.fasta, options.plot):
        if file and not file.absolute().parent.is_dir():
            raise AmplifyError(f"cannot write {file}: there is no directory {file.parent}. Create it first.")


def _summary(shards: Shards) -> list[tuple[str, str]]:
    """Return a summary of the manifest as (name, value) lines."""
    manifest = shards.manifest
    lengths, sequences = np.array(manifest["length_histogram"]).T
    cumulative = np.cumsum(sequences)  # number of sequences of at most each length
    ranks = {name: np.searchsorted(cumulative, share * cumulative[-1]) for name, share in QUANTILES.items()}
    quantiles = [f"{name} {lengths[rank]:,}" for name, rank in ranks.items()]
    residues = sorted(frequencies(manifest).items(), key=lambda item: -item[1])
    return [
        ("directory", str(shards.path)),
        ("fingerprint", shards.fingerprint),
        *(
            (kind, f"{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256']}")
            for kind in ("inputs", "exclude")
            for file in manifest[kind]
        ),
        ("settings", ", ".join(f"{name} {manifest[name]}" for name in ("max_length", "row_tokens", "windows", "seed"))),
        *counts(manifest),
        ("sequence length (residues)", f"mean {lengths @ sequences / cumulative[-1]:,.0f}, {', '.join(quantiles)}"),
        ("residue frequencies (%)", "  ".join(f"{residue} {share:.2f}" for residue, share in residues)),
        ("  in Swiss-Prot", "  ".join(f"{residue} {UNIPROT[residue]:.2f}" for residue, _ in residues)),
        (
            "files",
            (
                f"{len(shards.files())} of {len(manifest['shards'])} shards, written by amplify_ds "
                f"{manifest['amplify_ds_version']}"
            ),
        ),
    ]


def _show(shards: Shards, row: int) -> str:
    """Return the proteins of a row as text, one per line."""
    if not 0 <= row < shards.num_rows:
        raise AmplifyError(f"there is no row {row} in {shards.path}, whose rows are 0 to {shards.num_rows - 1}.")
    tokens, lengths = shards.row(row)
    lines = [f"row {row}: {len(lengths)} windows, {lengths.sum():,} of {shards.row_tokens:,} tokens"]
    lines += [f"{len(text):>6} residues, {kind:<13}  {text}" for kind, text in _windows(tokens, lengths)]
    return "\n".join(lines)


def _write_fasta(shards: Shards, file: Path) -> int:
    """Write every window as a FASTA record with its row and position in the name; return their number."""
    count = 0
    with writing(file), replacing(file) as partial, open(partial, "w") as out:
        for row in range(shards.num_rows):
            for index, (kind, text) in enumerate(_windows(*shards.row(row))):
                out.write(f">row{row}.{index} {kind}\n{text}\n")
                count += 1
    return count


def _windows(tokens: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield for each window of a row which part of a protein it is, and its text without <bos> and <eos>."""
    for window in np.split(tokens, np.cumsum(lengths))[:-1]:
        begins, ends = window[0] == BOS, window[-1] == EOS
        kind = {
            (True, True): "whole protein",
            (True, False): "first window",
            (False, True): "last window",
            (False, False): "middle window",
        }[begins, ends]
        yield kind, decode(window[int(begins) : len(window) - int(ends)])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory written by build_shards.py")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare every file with its checksum, check that the rows are valid, and exit with an "
        "error that names the first file that is not",
    )
    parser.add_argument(
        "--show",
        type=int,
        metavar="ROW",
        help="print the proteins of this row (from 0) as text, one per line, each with its length and "
        "whether it is a whole protein or a window of a longer one",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of processes for --verify (default: 1)"
    )
    parser.add_argument("--fasta", type=Path, metavar="FILE", help="write all windows to this new file as FASTA")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw lengths, residues, records and rows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(main)
