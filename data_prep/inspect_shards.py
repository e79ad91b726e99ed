"""Look into a directory of shards: a summary from the manifest, a check of every file, a row as text.

python data_prep/inspect_shards.py data/train --verify --show 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from report import counts, table
from tqdm import tqdm

from amplify_ds.data.shards import Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError, command
from amplify_ds.vocab import BOS, EOS, RESIDUES, decode, encode

DESCRIPTION = """\
Say what a directory of shards holds: where its sequences come from, how many there are
and how long, how often each residue occurs, how full the rows are. With --verify, check
every file against its checksum; with --show, print the proteins of a row."""

EXAMPLE = """\
example:
  python data_prep/inspect_shards.py data/train --verify --show 0
In Python, a shard is one line: numpy.load("data/train/shard-00000.tokens.npy")"""

QUANTILES = {"shortest": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "longest": 1.0}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    shards = Shards(options.directory)
    print(table(_summary(shards)))
    if options.verify:
        size = sum(file["bytes"] for file in shards.files().values())
        with tqdm(total=size, desc="verifying", unit="B", unit_scale=True, disable=None) as bar:
            count = verify(options.directory, bar.update)
        print(f"\nall {count} files match their checksums, and their contents are sound")
    if options.show is not None:
        print("\n" + _show(shards, options.show))


def _summary(shards: Shards) -> list[tuple[str, str]]:
    """Return what the manifest says as (name, value) lines."""
    manifest = shards.manifest
    lengths, sequences = np.array(manifest["length_histogram"]).T
    upto = np.cumsum(sequences)  # how many sequences are at most that long
    quantiles = [f"{name} {lengths[np.searchsorted(upto, share * upto[-1])]:,}" for name, share in QUANTILES.items()]
    residues = np.array(manifest["token_counts"])[encode(RESIDUES)]
    frequencies = sorted(zip(residues / residues.sum(), RESIDUES), reverse=True)
    return [
        ("directory", str(shards.path)),
        ("fingerprint", shards.fingerprint),
        *(
            (what, f"{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256']}")
            for what in ("inputs", "exclude")
            for file in manifest[what]
        ),
        ("settings", ", ".join(f"{name} {manifest[name]}" for name in ("max_length", "row_tokens", "windows", "seed"))),
        *counts(manifest),
        ("sequence length (residues)", f"mean {lengths @ sequences / upto[-1]:,.0f}, {', '.join(quantiles)}"),
        ("residue frequencies (%)", "  ".join(f"{residue} {100 * share:.2f}" for share, residue in frequencies)),
        (
            "files",
            f"{len(shards.files())} of {len(manifest['shards'])} shards, written by amplify_ds "
            f"{manifest['amplify_ds_version']}",
        ),
    ]


def _show(shards: Shards, row: int) -> str:
    """Return the proteins of a row as text, one a line."""
    if not 0 <= row < shards.num_rows:
        raise AmplifyError(f"there is no row {row} in {shards.path}, whose rows are 0 to {shards.num_rows - 1}.")
    tokens, lengths = shards.row(row)
    lines = [f"row {row}: {len(lengths)} windows, {lengths.sum():,} of {shards.row_tokens:,} tokens"]
    for window in np.split(tokens, np.cumsum(lengths))[:-1]:
        begins, ends = window[0] == BOS, window[-1] == EOS
        kind = {
            (True, True): "whole protein",
            (True, False): "first window",
            (False, True): "last window",
            (False, False): "middle window",
        }[begins, ends]
        text = decode(window[int(begins) : len(window) - int(ends)])
        lines.append(f"{len(text):>6} residues, {kind:<13}  {text}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that build_shards.py made")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file and compare it with its checksum, check that rows are sound, and exit "
        "with an error that names the first file that is not as it should be",
    )
    parser.add_argument(
        "--show",
        type=int,
        metavar="ROW",
        help="print the proteins of this row (0 is the first) as text, one a line, each with its "
        "length and whether it is a whole protein or a window of a longer one",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(main)
