"""Download UR100P, the sequences AMPLIFY was trained on, from the Hugging Face hub.

    python data_prep/fetch_ur100p.py --output data/UR100P

The work is done in prepare/hub_download.py; prepare/download_list.py lists and checks the files of a fetched folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from amplify_ds import start
from amplify_ds.data.shard_writer import working
from amplify_ds.errors import AmplifyError, command
from amplify_ds.prepare.download_list import (
    FETCHED,
    LICENCE,
    REPOSITORY,
    File,
    find_defects,
    first_defects,
    format_bytes,
    read_listing,
    split_names,
    total_bytes,
)
from amplify_ds.prepare.hub_download import fetch, free_bytes, pinned_listing
from amplify_ds.prepare.manifest_text import table
from amplify_ds.processes import check_workers
from amplify_ds.shell import next_commands

DESCRIPTION = f"""\
Download UR100P ({REPOSITORY} on the Hugging Face hub, {LICENCE}): the folders
UniProt, OAS and SCOP, each with train and test files, well over 100 GB in all. After an
interruption, the same command fetches the missing files, from the same commit of the
dataset. The size and checksum of every file are checked.

Without a network: run it on a machine that has one, copy DIR, and check the copy with
--check. Then build shards from it as from any folder; the command prints how."""

EXAMPLE = """\
examples:
  python data_prep/fetch_ur100p.py --output data/UR100P --dry-run
  python data_prep/fetch_ur100p.py --output data/UR100P --part UniProt/train UniProt/test
  python data_prep/fetch_ur100p.py --output data/UR100P --check"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    start.ending()  # Ctrl-C ends the process at once, without waiting for threads: the next run removes partial files
    if options.check:
        _check(options.output, options.part, options.workers)
    elif options.dry_run:
        listing = pinned_listing(options.output, options.part, options.revision)
        _print_sizes(options.output, listing.commit, listing.select(options.part))
    else:
        _fetch(options.output, options.part, options.revision, options.workers)


def _fetch(output: Path, parts: Sequence[str], revision: str | None, workers: int) -> None:
    with working(output.absolute()):
        listing, fetched = fetch(output, pinned_listing(output, parts, revision), parts, workers)
    files = listing.select(parts)
    counts = f"{fetched} fetched, {len(files) - fetched} were there"
    lines = [
        ("dataset", f"{REPOSITORY}, commit {listing.commit}, {LICENCE}"),
        ("files", f"{len(files)} in {output}, {format_bytes(total_bytes(files))}; {counts}"),
        ("checked", "size and checksum of each"),
    ]
    print(table(lines))
    _print_next(output, split_names(listing.select(listing.parts)))


def _check(output: Path, parts: Sequence[str], workers: int) -> None:
    """Raise AmplifyError unless `output` holds all files of `parts` (default: those fetched before), as listed."""
    if (listing := read_listing(output)) is None:
        raise AmplifyError(
            f"there is no {output / FETCHED}, which fetch_ur100p.py writes, so there is nothing to check against. Copy "
            "it with the files, or run the same command without --check on a machine with a network: it checks them."
        )
    files = listing.select(parts or listing.parts)
    if defects := find_defects(output, files, workers):
        raise AmplifyError(
            f"{len(defects)} of {len(files)} files of {output} are not as listed in {FETCHED}: "
            f"{first_defects(defects)}\nCopy them again, or run the same command without --check on a machine with a "
            "network: it fetches only these."
        )
    print(f"all {len(files)} files of {output} have the sizes and checksums of commit {listing.commit}")
    _print_next(output, split_names(files))


def _print_sizes(output: Path, commit: str, files: Mapping[str, File]) -> None:
    """Print what a run would fetch; existing files are compared by size only."""
    print(f"{REPOSITORY}, commit {commit}, {LICENCE}\n{'part':<20}{'files':>6}{'size':>10}{'to fetch':>10}")
    paths = {name: output / name for name in files}
    existing = {name for name, path in paths.items() if path.is_file() and path.stat().st_size == files[name].bytes}
    for split in (*split_names(files), "all"):
        some = {name: file for name, file in files.items() if split in ("all", *split_names([name]))}
        missing = {name: file for name, file in some.items() if name not in existing}
        print(f"{split:<20}{len(some):>6}{format_bytes(total_bytes(some)):>10}{format_bytes(total_bytes(missing)):>10}")
    print(f"{'free':<20}{format_bytes(free_bytes(output)):>26}")


def _print_next(output: Path, splits: Iterable[str]) -> None:
    """Print how to build shards of each split; training splits exclude the sequences of all test splits."""
    splits = list(splits)
    tests = [f"{output}:{split}" for split in splits if split.endswith("test")]
    for split in sorted(splits, key=lambda split: (not split.endswith("test"), split)):
        exclude = ["--exclude", *tests] if tests and not split.endswith("test") else []
        arguments = ["--input", f"{output}:{split}", *exclude, "--output", f"shards/{split.replace('/', '-')}"]
        print(next_commands(("python", "data_prep/build_shards.py", *arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to fetch into")
    parser.add_argument(
        "--part",
        nargs="+",
        default=[],
        metavar="START",
        help="fetch the files whose paths begin with one of these: UniProt/train, SCOP, … (default: all)",
    )
    parser.add_argument(
        "--revision", metavar="REV", help="commit, branch or tag (default: the newest at the first fetch into DIR)"
    )
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="files at a time (default: %(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print what would be fetched, and its size")
    mode.add_argument("--check", action="store_true", help=f"compare DIR with its {FETCHED}; needs no network")
    options = parser.parse_args(arguments)
    check_workers("--workers", options.workers)
    return options


if __name__ == "__main__":
    command(main)
