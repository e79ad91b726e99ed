"""Download UR100P, the sequences AMPLIFY was trained on, from the Hugging Face hub; without a network, say what to do.

    python data_prep/fetch_ur100p.py --output data/UR100P

The first run lists the dataset and pins its commit in DIR/fetched.json; every later run fetches from that commit. A run
reads what is there, removes what is not as listed, fetches what is missing, and compares each file with its size and
checksum when it has come. So a complete file is never fetched twice, and one that broke off is fetched anew: the client
continues a broken connection where it ended, but keeps no half of a file from one run to the next.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from pydantic import ValidationError
from tqdm import tqdm

from amplify_ds import bars
from amplify_ds.data.shard_writer import working, writing
from amplify_ds.errors import AmplifyError, command
from amplify_ds.prepare.fetched import (
    FETCHED,
    LICENCE,
    REPOSITORY,
    File,
    Listing,
    defect,
    find_defects,
    is_data,
    read_listing,
    split_names,
    write_listing,
)
from amplify_ds.prepare.manifest_text import table
from amplify_ds.processes import check_workers
from amplify_ds.shell import command_line, next_commands

DESCRIPTION = f"""\
Download UR100P ({REPOSITORY} on the Hugging Face hub, {LICENCE}): the folders
UniProt, OAS and SCOP, each with train and test files, well over 100 GB in all. Run again
after an interruption, the same command fetches what is missing, from the same commit of
the dataset. Every file is compared with its size and checksum.

Without a network: run it on a machine that has one, copy DIR, and check the copy with
--check. Then build shards from it as from any folder; the command prints how."""

EXAMPLE = """\
examples:
  python data_prep/fetch_ur100p.py --output data/UR100P --dry-run
  python data_prep/fetch_ur100p.py --output data/UR100P --part UniProt/train UniProt/test
  python data_prep/fetch_ur100p.py --output data/UR100P --check"""

_TIMEOUT = 30.0
_NAMED = 5  # files that a message names


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if options.check:
        return _check(options.output, options.part, options.workers)
    if options.dry_run:
        listing = _listing(options.output, options.part, options.revision)
        return _print_plan(options.output, listing, listing.select(options.part))
    with writing(options.output):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    with working(options.output.absolute()):
        _fetch(options.output, options.part, options.revision, options.workers)


def _fetch(output: Path, parts: Sequence[str], revision: str | None, workers: int) -> None:
    """Bring `output` to hold the files of `parts`, each as listed; AmplifyError if one is not there in the end."""
    begun = read_listing(output) is not None
    listing = _listing(output, parts, revision)
    files = listing.select(parts)
    if begun:  # else they may be of another program that is at work there
        _remove_leftovers(output)

    with _bar("checking", sum(files[name].bytes for name in files if (output / name).is_file())) as bar:
        wrong = find_defects(output, files, workers, bar.update)
    altered = [name for name in wrong if (output / name).is_file()]
    if altered and not begun:
        raise AmplifyError(
            f"{output} has no {FETCHED}, and {_some({name: wrong[name] for name in altered})}\nso it is not commit "
            f"{listing.commit} of {REPOSITORY}. Choose another --output, or delete these files; nothing was changed."
        )
    for name in altered:
        print(f"removed: {output / name} {wrong[name]}", file=sys.stderr)
        (output / name).unlink()
    _check_space(output, sum(files[name].bytes for name in wrong))
    names = sorted({*listing.parts, *(parts or split_names(listing.files))})
    write_listing(output, listing.model_copy(update={"parts": names}))
    if wrong:
        failed, gone = _download(output, listing.commit, {name: files[name] for name in wrong}, files, workers)
        if failed:
            mend = f"Run the same command again: the {len(files) - len(failed)} complete files are kept."
            if gone:
                mend = f"The hub no longer has this commit. Choose another --output, or delete {output} and start anew."
            elif len(failed) == len(wrong):
                mend += _without_a_network(output, parts)
            raise AmplifyError(f"{len(failed)} of {len(files)} files could not be fetched: {_some(failed)}\n{mend}")
    size = tqdm.format_sizeof(sum(file.bytes for file in files.values()), "B")
    lines = [
        ("dataset", f"{REPOSITORY}, commit {listing.commit}, {LICENCE}"),
        ("files", f"{len(files)} in {output}, {size}; {len(wrong)} fetched, {len(files) - len(wrong)} were there"),
        ("checked", "size and checksum of each"),
    ]
    print(table(lines))
    _print_next(output, split_names(listing.select(names)))


def _check(output: Path, parts: Sequence[str], workers: int) -> None:
    """AmplifyError unless `output` holds all files of `parts`, as listed; by default, those it was fetched for."""
    listing = read_listing(output)
    if listing is None:
        raise AmplifyError(
            f"there is no {output / FETCHED}, which fetch_ur100p.py writes, so there is nothing to check against. Copy "
            "it with the files. A folder that hf download made has none: where there is a network, run "
            f"{_words('fetch_ur100p.py', '--output', output)} on it, which checks it and writes the file."
        )
    files = listing.select(parts or listing.parts)
    with _bar("checking", sum(file.bytes for file in files.values())) as bar:
        wrong = find_defects(output, files, workers, bar.update)
    if wrong:
        raise AmplifyError(
            f"{len(wrong)} of {len(files)} files of {output} are not as {FETCHED} says: {_some(wrong)}\nCopy them "
            "again, or run the same command without --check where there is a network: it fetches these alone."
        )
    print(f"all {len(files)} files of {output} have the sizes and checksums of commit {listing.commit}")
    _print_next(output, split_names(files))


def _listing(output: Path, parts: Sequence[str], revision: str | None) -> Listing:
    """Return the listing of `output`, or the hub's if this is the first fetch."""
    known = read_listing(output)
    if known and revision in (None, known.commit):
        return known
    asked = _ask_hub(output, parts, revision)
    if known and known.commit != asked.commit:
        raise AmplifyError(
            f"{output} holds commit {known.commit} of {REPOSITORY}, --revision {revision} is commit {asked.commit}. "
            "Choose another --output, or leave --revision out to go on with the first; nothing was changed."
        )
    return known or asked


def _ask_hub(output: Path, parts: Sequence[str], revision: str | None) -> Listing:
    """Return the data files of a revision of the dataset."""
    try:
        info = HfApi().dataset_info(REPOSITORY, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except Exception as error:  # whatever the library raises: no network, no such dataset, no access
        refused = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))
        raise AmplifyError(
            f"{REPOSITORY} cannot be listed at {HfApi().endpoint}: {_reason(error, revision)}. Nothing was changed."
            + ("" if refused else _without_a_network(output, parts))
        ) from error
    files = {
        entry.rfilename: {"bytes": entry.size, "sha256": entry.lfs.sha256}
        if entry.lfs
        else {"bytes": entry.size, "git_sha1": entry.blob_id}
        for entry in info.siblings or []
    }
    try:
        data = {name: file for name, file in files.items() if is_data(name)}
        return Listing.model_validate({"commit": info.sha, "files": data})
    except ValidationError as error:
        raise AmplifyError(
            f"{HfApi().endpoint} does not describe {REPOSITORY} as expected: {error.errors()[0]['msg']}. Is it a "
            "Hugging Face hub, and did the dataset keep its CSV files?"
        ) from error


def _download(
    output: Path, commit: str, missing: Mapping[str, File], files: Mapping[str, File], workers: int
) -> tuple[dict[str, str], bool]:
    """Fetch the missing ones among `files`; return why any is not there, by file, and whether the commit is gone."""
    failed, gone = {}, False
    total, left = (sum(file.bytes for file in some.values()) for some in (files, missing))
    with _bar("fetching", total, total - left) as bar, ThreadPoolExecutor(workers) as pool:
        counter = _counter(bar)
        running = {
            pool.submit(
                hf_hub_download,
                REPOSITORY,
                name,
                repo_type="dataset",
                revision=commit,
                local_dir=output,
                tqdm_class=counter,
            ): name
            for name in missing
        }
        try:
            for future in as_completed(running):
                name = running[future]
                if error := future.exception():
                    failed[name] = _reason(error, commit)
                    gone |= isinstance(error, RevisionNotFoundError)
                elif what := defect(output / name, files[name]):
                    (output / name).unlink(missing_ok=True)
                    failed[name] = f"{what}; removed"
        except KeyboardInterrupt:  # threads that wait for the network cannot be ended but with the process
            _remove_leftovers(output)
            print("interrupted: run the same command again, complete files are kept", file=sys.stderr, flush=True)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    return failed, gone


def _counter(bar: tqdm) -> type:
    """Return a class for the library to make a bar of for each file, all of which advance `bar`."""

    class Counter:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int | float | None = 1) -> None:
            bar.update(count)

        def update_transfer(self, count: int | float | None = 1) -> None:
            """Bytes on the wire, which deduplication makes fewer than those in the file."""

        def set_postfix_str(self, *_: object, **__: object) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

        def close(self) -> None:
            pass

    return Counter


def _bar(what: str, total: int, initial: int = 0) -> tqdm:
    return bars.bar(total=total, initial=initial, desc=what, unit="B", unit_scale=True)


def _remove_leftovers(output: Path) -> None:
    """Remove the halves of files that a killed run left; the library never comes back to them."""
    for path in (output / ".cache" / "huggingface" / "download").rglob("*.incomplete"):
        path.unlink(missing_ok=True)


def _check_space(output: Path, needed: int) -> None:
    if needed > _free(output):
        raise AmplifyError(
            f"{output} needs {tqdm.format_sizeof(needed, 'B')} more, and its disk has "
            f"{tqdm.format_sizeof(_free(output), 'B')} free. Make room, choose another --output, or fetch less with "
            "--part; nothing was fetched."
        )


def _free(output: Path) -> int:
    """Return how many bytes fit where `output` is, or would be."""
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def _reason(error: BaseException, revision: str | None) -> str:
    """Say in a line what the library's error means."""
    if isinstance(error, GatedRepoError):
        return f"access is restricted. Accept its terms at {HfApi().endpoint}/datasets/{REPOSITORY}, then hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such dataset, or it is not open to you. If you have access, hf auth login"
    lines = str(error.__cause__ or error).strip().splitlines() or [repr(error)]
    return lines[0].rstrip(". ")


def _some(wrong: Mapping[str, str]) -> str:
    """Name the first few of the files and what is wrong with them, a line each."""
    lines = [f"\n  {name} {what}" for name, what in list(wrong.items())[:_NAMED]]
    return "".join(lines) + (f"\n  … and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")


def _without_a_network(output: Path, parts: Sequence[str]) -> str:
    include = [word for part in parts for word in ("--include", f"{part}*")]
    by_hand = ["hf", "download", REPOSITORY, "--repo-type", "dataset", *include, "--local-dir", str(output)]
    script, first = "fetch_ur100p.py", [*parts, "UniProt"][0]
    source = f"{output}:{first if '/' in first else f'{first}/train'}"
    return f"""
If this machine has no network, run on one that has:
  {_words(script, "--output", output, *(["--part", *parts] if parts else []))}
or, which --check cannot check:
  {command_line(*by_hand)}
Copy the folder here, with the {FETCHED} in it, then run here:
  {_words(script, "--output", output, "--check")}
  {_words("build_shards.py", "--input", source, "--output", "shards/train")}"""


def _words(script: str, *words: object) -> str:
    return command_line("python", f"data_prep/{script}", *words)


def _print_plan(output: Path, listing: Listing, files: Mapping[str, File]) -> None:
    """Print what a run would fetch; what is there is compared by its size alone."""
    print(f"{REPOSITORY}, commit {listing.commit}, {LICENCE}\n{'part':<20}{'files':>6}{'size':>10}{'to fetch':>10}")
    groups = {split: [name for name in files if split_names([name]) == [split]] for split in split_names(files)}
    for split, names in {**groups, "all": list(files)}.items():
        missing = [
            name
            for name in names
            if not (output / name).is_file() or (output / name).stat().st_size != files[name].bytes
        ]
        sizes = (tqdm.format_sizeof(sum(files[name].bytes for name in some), "B") for some in (names, missing))
        print(f"{split:<20}{len(names):>6}" + "".join(f"{size:>10}" for size in sizes))
    print(f"{'free':<20}{tqdm.format_sizeof(_free(output), 'B'):>26}")


def _print_next(output: Path, splits: Iterable[str]) -> None:
    """Print how to make shards of each split; training leaves out whatever a test set has too."""
    splits = list(splits)
    tests = [f"{output}:{split}" for split in splits if split.endswith("test")]
    for split in sorted(splits, key=lambda split: (not split.endswith("test"), split)):
        exclude = ["--exclude", *tests] if tests and not split.endswith("test") else []
        words = ["--input", f"{output}:{split}", *exclude, "--output", f"shards/{split.replace('/', '-')}"]
        print(next_commands(("python", "data_prep/build_shards.py", *words)))


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
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print what would be fetched, and how much it is")
    instead.add_argument("--check", action="store_true", help=f"compare DIR with its {FETCHED}, without a network")
    options = parser.parse_args(arguments)
    check_workers("--workers", options.workers)
    return options


if __name__ == "__main__":
    command(main)
