"""Protein sequences -> shuffled, packed, memory-mapped shards that training reads.

    python data_prep/build_shards.py --input uniref50.fasta.gz --output data/train --exclude validation.fasta

The work is done in `pipeline.py`; this file is the command: it checks what was asked for, reuses what is already there,
and reports. The options are in `build_options.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from build_options import Asked, parse
from manifest import check_records, describe, make_manifest
from pipeline import hash_inputs, pack_part, scatter_inputs, sha256
from report import counts, table
from sources import Source, find_sources
from tasks import Ended, Workers, workers

from amplify_ds.data.shard_writer import building, publish_shard, remove_leftovers, workspace, write_manifest
from amplify_ds.data.shards import MANIFEST, Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError, command

_SECONDS_BETWEEN_LOOKS = 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    inputs, exclude = find_sources(asked.input, asked.columns), find_sources(asked.exclude, asked.columns)
    missing = [part for part, output in asked.outputs.items() if is_free(output)]
    for part, output in asked.outputs.items():
        if part not in missing:
            _check_same(output, asked.settings | {"part": part}, inputs, exclude)
    if missing:
        with workers(asked.workers) as crew:
            try:
                _build(asked, missing, inputs, exclude, crew)
            except Ended:
                if any(is_free(asked.outputs[part]) for part in missing):
                    raise
        if crew.rank:
            return
    for part, output in asked.outputs.items():
        if part in missing:
            manifest = Shards(output).manifest
            print(table([*counts(manifest), ("shards", f"{len(manifest['shards'])} in {output}")]))
        else:
            remove_leftovers(output)
            print(f"{output} is complete, of the same sequences and settings: reused")
    for output in asked.outputs.values():
        print(f"next: python data_prep/inspect_shards.py {output} --verify")


def _build(
    asked: Asked, parts: Sequence[str], inputs: Sequence[Source], exclude: Sequence[Source], crew: Workers
) -> None:
    """Build the outputs of `parts`; intermediate results are kept beside the first."""
    home = asked.outputs[parts[0]]
    with ExitStack() as stack:
        if crew.rank == 0:
            places = {part: stack.enter_context(building(asked.outputs[part])) for part in parts}
        elif not _appears(workspace(home).work, home):
            return
        work = workspace(home).work
        hashes = hash_inputs([*inputs, *exclude], work, crew)
        scattered, excluded = scatter_inputs(inputs, exclude, asked.rules, asked.settings, work, crew)
        check_records([*scattered, *excluded])
        origins = {"inputs": describe(inputs, hashes), "exclude": describe(exclude, hashes)}
        for part in parts:
            packed = pack_part(part, scattered, excluded, asked.settings, work, crew)
            if crew.rank == 0:
                manifest = make_manifest(part, asked.settings, origins, scattered, packed)
                _publish(manifest, work, places[part].shards)


def _publish(manifest: dict, work: Path, directory: Path) -> None:
    """Move the shards from `work` into `directory`, which holds nothing else then, and write the manifest."""
    shards = [publish_shard(entry, work, directory, number) for number, entry in enumerate(manifest["shards"])]
    published = {name for entry in shards for name in entry["files"]}
    for path in directory.iterdir():
        if path.name not in published:
            path.unlink()
    write_manifest(directory, manifest | {"shards": shards})


def _appears(work: Path, output: Path) -> bool:
    """Wait for the first of the machines to begin; false if the output is complete already."""
    while not work.exists():
        if not is_free(output):
            return False
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return True


def is_free(output: Path) -> bool:
    """Whether nothing is at `output`, or an empty directory."""
    return not output.exists() or output.is_dir() and not any(output.iterdir())


def _check_same(output: Path, settings: dict, inputs: Sequence[Source], exclude: Sequence[Source]) -> None:
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
    for name, sources in (("inputs", inputs), ("exclude", exclude)):
        there = sorted((entry["name"], entry.get("bytes", 0)) for entry in manifest[name])
        here = sorted((source.name, source.bytes or 0) for source in sources)
        if there != here:
            differences.append(f"{name}: {there} there, {here} here (name, bytes)")
        elif (
            describe(sources, {source.version: sha256(source.path) for source in sources if source.path})
            != manifest[name]
        ):
            differences.append(f"{name}: files of the same names and sizes, but other contents")
        elif any(source.passes_once for source in sources):
            differences.append(f"{name}: standard input, of which nobody knows whether it is the same")
    if not differences:
        verify(output)
    else:
        raise AmplifyError(
            f"{output} holds shards of other settings or sequences: {'; '.join(differences)}. Choose "
            "another --output directory, or delete this one; nothing was changed."
        )


if __name__ == "__main__":
    command(main)
