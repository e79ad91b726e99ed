"""Bring a folder to hold files of UR100P, from the Hugging Face hub, each of them as listed.

The first run lists the dataset and pins its commit in fetched.json; every later run fetches from that commit. A run
checks what is there, removes what is not as listed, has huggingface_hub fetch what is missing, and checks that: the
client compares no more than sizes. It continues a broken connection where it ended, but keeps no half of a file from
one run to the next.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError
from pydantic import ValidationError

from amplify_ds.errors import AmplifyError, explain
from amplify_ds.hub_files import failure, refusal, snapshot
from amplify_ds.prepare.download_list import (
    FETCHED,
    REPOSITORY,
    File,
    Listing,
    find_defects,
    first_of,
    listing_of,
    read_listing,
    readable,
    split_names,
    total,
    write_listing,
)
from amplify_ds.shell import command_line

_TIMEOUT = 30.0


def pinned(output: Path, parts: Sequence[str], revision: str | None) -> Listing:
    """Return the listing of `output`, or the hub's if this is the first fetch."""
    known = read_listing(output)
    if known and revision in (None, known.commit):
        return known
    hub = HfApi()
    try:
        asked = listing_of(hub.dataset_info(REPOSITORY, revision=revision, files_metadata=True, timeout=_TIMEOUT))
    except ValidationError as error:
        raise AmplifyError(
            f"{hub.endpoint} does not describe {REPOSITORY} as expected: {error.errors()[0]['msg']}. Is it a Hugging "
            "Face hub, and did the dataset keep its CSV files?"
        ) from error
    except Exception as error:  # whatever the client raises
        why = refusal(error, "dataset", revision)
        advice = "" if why else _without_a_network(output, parts)
        raise AmplifyError(
            f"{REPOSITORY} cannot be listed at {hub.endpoint}: {why or failure(error)}. Nothing was changed.{advice}"
        ) from error
    if known and known.commit != asked.commit:
        raise AmplifyError(
            f"{output} holds commit {known.commit} of {REPOSITORY}, --revision {revision} is commit {asked.commit}. "
            "Choose another --output, or leave --revision out to go on with the first; nothing was changed."
        )
    return known or asked


def fetch(output: Path, listing: Listing, parts: Sequence[str], workers: int) -> tuple[Listing, int]:
    """Bring `output` to hold the files of `parts`, each as listed; AmplifyError if one is not there in the end.

    Returns the listing with all parts that were ever asked for, and how many files were fetched now.
    """
    files = listing.select(parts)
    begun = (output / FETCHED).exists()
    if begun:  # else they may be of another program that is at work there
        for half in (output / ".cache/huggingface/download").rglob("*.incomplete"):
            half.unlink(missing_ok=True)
    missing = find_defects(output, files, workers)
    altered = {name: what for name, what in missing.items() if (output / name).is_file()}
    if altered and not begun:
        raise AmplifyError(
            f"{output} has no {FETCHED}, and {first_of(altered)}\nso it is not commit {listing.commit} of "
            f"{REPOSITORY}. Choose another --output, or delete these files; nothing was changed."
        )
    _remove(output, altered)
    lacking = {name: files[name] for name in missing}
    if total(lacking) > free_bytes(output):
        raise AmplifyError(
            f"{output} needs {readable(total(lacking))} more, and its disk has {readable(free_bytes(output))} free. "
            "Make room, choose another --output, or fetch less with --part; nothing was fetched."
        )
    names = sorted({*listing.parts, *(parts or split_names(listing.files))})
    listing = listing.model_copy(update={"parts": names})
    write_listing(output, listing)
    if lacking:
        _download(output, listing.commit, lacking, parts, workers)
    return listing, len(lacking)


def _download(output: Path, commit: str, files: Mapping[str, File], parts: Sequence[str], workers: int) -> None:
    wanted = {"revision": commit, "allow_patterns": list(files)}
    problem: Exception | None = None
    try:
        snapshot(REPOSITORY, repo_type="dataset", local_dir=output, max_workers=workers, **wanted)
    except Exception as error:  # the first failure, whatever the client raises
        problem = error
    if not (failed := find_defects(output, files, workers)):
        return
    _remove(output, failed)
    refused = problem and refusal(problem, "dataset", commit)
    why = f" ({refused or explain(problem) or failure(problem)})" if problem else ""
    advice = "Run the same command again: complete files are kept."
    if isinstance(problem, RevisionNotFoundError):
        advice = f"Choose another --output, or delete {output} and start anew."
    elif len(failed) == len(files) and not refused:
        advice += _without_a_network(output, parts)
    raise AmplifyError(
        f"{len(failed)} of {len(files)} missing files could not be fetched{why}: {first_of(failed)}\n{advice}"
    )


def _remove(output: Path, wrong: Mapping[str, str]) -> None:
    for name, what in wrong.items():
        if (output / name).is_file():
            print(f"removed: {output / name} {what}", file=sys.stderr)
            (output / name).unlink()


def _without_a_network(output: Path, parts: Sequence[str]) -> str:
    fetch = ["python", "data_prep/fetch_ur100p.py", "--output", output]
    by_hand = ["hf", "download", REPOSITORY, "--repo-type", "dataset", "--local-dir", output]
    return f"""
If this machine has no network, run on one that has:
  {command_line(*fetch, *(["--part", *parts] if parts else []))}
or, which --check cannot check:
  {command_line(*by_hand, *(word for part in parts for word in ("--include", f"{part}*")))}
Copy the folder here, with the {FETCHED} in it, then run here, which prints how to build shards from it:
  {command_line(*fetch, "--check")}"""


def free_bytes(output: Path) -> int:
    """Return how many bytes fit where `output` is, or would be."""
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free
