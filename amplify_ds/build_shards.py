"""Protein sequences -> shuffled, packed, memory-mapped shards that training reads.

    python data_prep/build_shards.py --input uniref50.fasta.gz --output data/train --exclude validation.fasta

The work is done in `prepare/pipeline.py`; this file is the command: it checks what was asked for, reuses what is
already there, and reports. The options are in `prepare/build_options.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from amplify_ds.data.shard_writer import building, partial_directory, publish_shard, remove_leftovers, write_manifest
from amplify_ds.data.shards import MANIFEST, Shards
from amplify_ds.data.verify import verify
from amplify_ds.errors import AmplifyError, command
from amplify_ds.files import sha256
from amplify_ds.prepare import rows
from amplify_ds.prepare.build_options import Asked, parse
from amplify_ds.prepare.manifest import check_records, describe, make_manifest
from amplify_ds.prepare.manifest_text import counts, table
from amplify_ds.prepare.pieces import STANDARD_INPUT, Source
from amplify_ds.prepare.pipeline import check_unchanged, inspect_inputs, pack_part, scatter_inputs
from amplify_ds.prepare.ranks import launched, wait_for_first, watching
from amplify_ds.prepare.sources import find_sources
from amplify_ds.prepare.tasks import Workers, workers
from amplify_ds.shell import next_commands
from amplify_ds.training.orphans import end_with_launcher


def main(arguments: Sequence[str] | None = None) -> None:
    end_with_launcher()
    asked, rank = parse(arguments), launched()
    tell = partial(print, "note:", file=sys.stderr) if rank.number == 0 else lambda note: None
    inputs = find_sources(asked.input, asked.reading, tell)
    exclude = find_sources(asked.exclude, replace(asked.reading, names_for=None), tell)
    if rank.world > 1 and any(source.passes_once for source in (*inputs, *exclude)):
        raise AmplifyError(f"{STANDARD_INPUT} reaches one process, and this build has {rank.world}. Give a file.")
    missing = [part for part, output in asked.outputs.items() if is_free(output)]
    if rank.number and not missing:
        return
    for part, output in asked.outputs.items():
        if part not in missing:
            _check_same(output, asked.settings | {"part": part}, inputs, exclude)
    if missing:
        with workers(asked.workers, rank) as crew:
            try:
                _build(asked, missing, inputs, exclude, crew)
            except AmplifyError:
                if rank.number == 0 or any(is_free(asked.outputs[part]) for part in missing):
                    raise  # else it was done without the help of this rank, which came late
    if rank.number:
        return
    for part, output in asked.outputs.items():
        if part in missing:
            manifest = Shards(output).manifest
            print(table([*counts(manifest), ("shards", f"{len(manifest['shards'])} in {output}")]))
        else:
            remove_leftovers(output)
            print(f"{output} is complete, of the same sequences and settings: reused")
    checks = [("python", "data_prep/inspect_shards.py", output, "--verify") for output in asked.outputs.values()]
    print(next_commands(*checks))


def _build(
    asked: Asked, parts: Sequence[str], inputs: Sequence[Source], exclude: Sequence[Source], crew: Workers
) -> None:
    """Build the outputs of `parts`; intermediate results are kept beside the first."""
    home = asked.outputs[parts[0]]
    plan = [asked.settings, len(inputs), rows.PIECE, [source.version for source in (*inputs, *exclude)]]
    with ExitStack() as stack:
        if crew.rank.number == 0:
            places = {part: stack.enter_context(building(asked.outputs[part])) for part in parts}
            work = places[parts[0]].work
        elif begun := wait_for_first(partial_directory(home), lambda: not is_free(home)):
            work = begun
        else:
            return
        crew = crew._replace(check=stack.enter_context(watching(work, crew.rank, plan)))
        found = inspect_inputs([*inputs, *exclude], work, crew)
        origins = {"inputs": describe(inputs, found.hashes), "exclude": describe(exclude, found.hashes)}
        scattered, excluded = scatter_inputs(inputs, exclude, found, asked.rules, asked.settings, work, crew)
        check_unchanged(inputs, asked.reading)
        check_unchanged(exclude, replace(asked.reading, names_for=None))
        check_records([*scattered, *excluded])
        packed = {part: pack_part(part, scattered, excluded, asked.settings, work, crew) for part in parts}
        if crew.rank.number == 0:
            manifests = {part: make_manifest(part, asked.settings, origins, scattered, packed[part]) for part in parts}
            for part, manifest in manifests.items():
                _publish(manifest, work, places[part].shards)


def _publish(manifest: dict, work: Path, directory: Path) -> None:
    """Move the shards from `work` into `directory`, which holds nothing else then, and write the manifest."""
    shards = [publish_shard(entry, work, directory, number) for number, entry in enumerate(manifest["shards"])]
    published = {name for entry in shards for name in entry["files"]}
    for path in directory.iterdir():
        if path.name not in published:
            path.unlink()
    write_manifest(directory, manifest | {"shards": shards})


def is_free(output: Path) -> bool:
    """Whether nothing is at `output`, or an empty directory."""
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def _check_same(output: Path, settings: dict, inputs: Sequence[Source], exclude: Sequence[Source]) -> None:
    """AmplifyError if `output`, which exists, is anything but the shards that are asked for."""
    if not (output / MANIFEST).exists():
        raise AmplifyError(
            f"{output} is a file or holds other files, and no {MANIFEST}. Choose a new or empty "
            "--output directory; nothing was changed."
        )
    manifest = Shards(output).manifest
    manifest.setdefault("reading", {})  # of a version that had no such options
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
