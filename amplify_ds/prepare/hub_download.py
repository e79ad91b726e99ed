"""Download files of UR100P from the Hugging Face hub and check each against the list.

The first run lists the dataset and pins its commit in fetched.json; later runs fetch from that commit. A run checks
the existing files, removes those that are not as listed, lets huggingface_hub fetch the missing ones, and checks these
too, because the client compares only sizes. The client resumes a broken connection, but a partial file is not kept
from one run to the next.
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
    first_defects,
    format_bytes,
    listing_of,
    read_listing,
    split_names,
    total_bytes,
    write_listing,
)
from amplify_ds.shell import command_line

_TIMEOUT = 30.0


def pinned_listing(output: Path, parts: Sequence[str], revision: str | None) -> Listing:
    """Return the listing of `output`, or the hub's if this is the first fetch; AmplifyError if it cannot be read."""
    known = read_listing(output)
    if known and revision in (None, known.commit):
        return known
    hub = HfApi()
    try:
        current = listing_of(hub.dataset_info(REPOSITORY, revision=revision, files_metadata=True, timeout=_TIMEOUT))
    except ValidationError as error:
        raise AmplifyError(
            f"{hub.endpoint} does not describe {REPOSITORY} as expected: {error.errors()[0]['msg']}. Is it a Hugging "
            "Face hub, and did the dataset keep its CSV files?"
        ) from error
    except Exception as error:  # whatever the client raises
        reason = refusal(error, "dataset", revision)
        advice = "" if reason else _offline_advice(output, parts)
        raise AmplifyError(
            f"{REPOSITORY} cannot be listed at {hub.endpoint}: {reason or failure(error)}. Nothing was changed.{advice}"
        ) from error
    if known and known.commit != current.commit:
        raise AmplifyError(
            f"{output} holds commit {known.commit} of {REPOSITORY}, --revision {revision} is commit {current.commit}. "
            "Choose another --output, or omit --revision to continue with the existing commit; nothing was changed."
        )
    return known or current


def fetch(output: Path, listing: Listing, parts: Sequence[str], workers: int) -> tuple[Listing, int]:
    """Fetch the files of `parts` that `output` lacks. Raises AmplifyError unless all are there as listed in the end.

    Returns the listing with all parts that were ever requested, and how many files were fetched now.
    """
    files = listing.select(parts)
    ours = (output / FETCHED).exists()
    if ours:  # otherwise another program may be downloading there
        for partial in (output / ".cache/huggingface/download").rglob("*.incomplete"):
            partial.unlink(missing_ok=True)
    defects = find_defects(output, files, workers)
    altered = {name: defect for name, defect in defects.items() if (output / name).is_file()}
    if altered and not ours:
        raise AmplifyError(
            f"{output} has no {FETCHED}, and {first_defects(altered)}\nso it is not commit {listing.commit} of "
            f"{REPOSITORY}. Choose another --output, or delete these files; nothing was changed."
        )
    _remove(output, altered)
    missing = {name: files[name] for name in defects}
    needed, free = total_bytes(missing), free_bytes(output)
    if needed > free:
        raise AmplifyError(
            f"{output} needs {format_bytes(needed)} more, and its disk has {format_bytes(free)} free. Make room, "
            "choose another --output, or fetch less with --part; nothing was fetched."
        )
    names = sorted({*listing.parts, *(parts or split_names(listing.files))})
    listing = listing.model_copy(update={"parts": names})
    write_listing(output, listing)
    if missing:
        _download(output, listing.commit, missing, parts, workers)
    return listing, len(missing)


def _download(output: Path, commit: str, files: Mapping[str, File], parts: Sequence[str], workers: int) -> None:
    selection = {"revision": commit, "allow_patterns": list(files)}
    problem: Exception | None = None
    try:
        snapshot(REPOSITORY, repo_type="dataset", local_dir=output, max_workers=workers, **selection)
    except Exception as error:  # the first failure, whatever the client raises
        problem = error
    if not (failed := find_defects(output, files, workers)):
        return
    _remove(output, failed)
    refused = problem and refusal(problem, "dataset", commit)
    reason = f" ({refused or explain(problem) or failure(problem)})" if problem else ""
    advice = "Run the same command again: complete files are kept."
    if isinstance(problem, RevisionNotFoundError):
        advice = f"Choose another --output, or delete {output} and start again."
    elif len(failed) == len(files) and not refused:
        advice += _offline_advice(output, parts)
    raise AmplifyError(
        f"{len(failed)} of {len(files)} missing files could not be fetched{reason}: {first_defects(failed)}\n{advice}"
    )


def _remove(output: Path, defects: Mapping[str, str]) -> None:
    for name, defect in defects.items():
        if (output / name).is_file():
            print(f"removed: {output / name} {defect}", file=sys.stderr)
            (output / name).unlink()


def _offline_advice(output: Path, parts: Sequence[str]) -> str:
    fetch = ["python", "data_prep/fetch_ur100p.py", "--output", output]
    download = ["hf", "download", REPOSITORY, "--repo-type", "dataset", "--local-dir", output]
    return f"""
If this machine has no network, run this on one that has:
  {command_line(*fetch, *(["--part", *parts] if parts else []))}
or this, after which --check has nothing to compare with:
  {command_line(*download, *(word for part in parts for word in ("--include", f"{part}*")))}
Copy the folder here with its {FETCHED}. Then run this, which also prints how to build shards from it:
  {command_line(*fetch, "--check")}"""


def free_bytes(output: Path) -> int:
    """Return the free space on the disk on which `output` is or would be."""
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
