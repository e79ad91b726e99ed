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
from amplify_ds.prepare.build_ranks import BuildRanks, launched, together
from amplify_ds.prepare.chunks import STANDARD_INPUT, Source
from amplify_ds.prepare.manifest import check_records, describe, make_manifest
from amplify_ds.prepare.manifest_text import counts, table
from amplify_ds.prepare.pipeline import check_unchanged, inspect_inputs, pack_part, scatter_inputs
from amplify_ds.prepare.sources import find_sources
from amplify_ds.prepare.tasks import digest, workers
from amplify_ds.processes import sigterm_interrupts
from amplify_ds.shell import next_commands
from amplify_ds.training import launcher_watch
from amplify_ds.training.shared_files import wait_for


def main(arguments: Sequence[str] | None = None) -> None:
    launcher_watch.end_with_launcher()
    asked, rank = parse(arguments), launched()
    if rank.world > 1 and "-" in (*asked.input, *asked.exclude):
        raise AmplifyError(f"{STANDARD_INPUT} reaches one process, and this build has {rank.world}. Give a file.")
    with sigterm_interrupts(), together(rank) as ranks:
        launcher_watch.met()
        built = _build(asked, ranks)
        launcher_watch.finished()
    if rank.number:
        return
    for part, output in asked.outputs.items():
        if part in built:
            manifest = Shards(output).manifest
            print(table([*counts(manifest), ("shards", f"{len(manifest['shards'])} in {output}")]))
        else:
            remove_leftovers(output)
            print(f"{output} is complete, of the same sequences and settings: reused")
    checks = [("python", "data_prep/inspect_shards.py", output, "--verify") for output in asked.outputs.values()]
    print(next_commands(*checks))


def _build(asked: Asked, ranks: BuildRanks) -> list[str]:
    """Build the parts that are not there and return which; AmplifyError if others have been built there."""
    rank = ranks.rank
    tell = partial(print, "note:", file=sys.stderr) if rank.number == 0 else lambda note: None
    inputs = find_sources(asked.input, asked.reading, tell)
    exclude = find_sources(asked.exclude, replace(asked.reading, names_for=None), tell)
    plan = digest([asked.settings, len(inputs), rows.CHUNK_BYTES, [source.version for source in (*inputs, *exclude)]])
    if rank.number:
        [(plan_of_first, parts, name)] = ranks.wait_for("begun")
        if plan != plan_of_first:
            raise AmplifyError(
                f"{rank} is to do other work than rank 0. Give all the same command, the same version of this program, "
                "and inputs that are the same files on every machine: path, size, time of change."
            )
    else:
        parts = [part for part, output in asked.outputs.items() if is_free(output)]
        for part, output in asked.outputs.items():
            if part not in parts:
                _check_same(output, asked.settings | {"part": part}, inputs, exclude)
    if not parts:
        ranks.say(begun=[plan, parts, ""])
        return parts
    with workers(asked.workers, rank, ranks.check) as crew, ExitStack() as stack:
        if rank.number == 0:
            places = {part: stack.enter_context(building(asked.outputs[part])) for part in parts}
            name = places[parts[0]].work.name
            ranks.say(begun=[plan, parts, name])
        work = partial_directory(asked.outputs[parts[0]]) / name  # intermediate results are beside the first output
        wait_for(work)
        found = inspect_inputs([*inputs, *exclude], work, crew)
        origins = {"inputs": describe(inputs, found.hashes), "exclude": describe(exclude, found.hashes)}
        scattered, excluded = scatter_inputs(inputs, exclude, found, asked.rules, asked.settings, work, crew)
        check_unchanged(inputs, asked.reading)
        check_unchanged(exclude, replace(asked.reading, names_for=None))
        check_records([*scattered, *excluded])
        packed = {part: pack_part(part, scattered, excluded, asked.settings, work, crew) for part in parts}
        if rank.number == 0:
            manifests = {part: make_manifest(part, asked.settings, origins, scattered, packed[part]) for part in parts}
            for part, manifest in manifests.items():
                _publish(manifest, work, places[part].shards)
        ranks.ready()
    return parts


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
