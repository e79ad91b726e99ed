"""Turn protein sequences into the shuffled, packed, memory-mapped shards that training reads.

    python data_prep/build_shards.py --input uniref50.fasta.gz --output data/train --exclude validation.fasta

This file is the command: it checks the options, reuses complete shards, and prints a summary. The work is done in
`prepare/pipeline.py`; the options are in `prepare/build_options.py`.
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
from amplify_ds.prepare.build_options import BuildOptions, parse
from amplify_ds.prepare.build_ranks import BuildRanks, connected, rank_from_environment
from amplify_ds.prepare.chunks import STANDARD_INPUT, Source
from amplify_ds.prepare.manifest import check_records, describe, make_manifest
from amplify_ds.prepare.manifest_text import counts, table
from amplify_ds.prepare.pipeline import check_unchanged, inspect_inputs, pack_part, scatter_inputs
from amplify_ds.prepare.sources import find_sources
from amplify_ds.prepare.tasks import digest, start_workers
from amplify_ds.processes import sigterm_interrupts
from amplify_ds.shell import next_commands
from amplify_ds.training import launcher_watch
from amplify_ds.training.shared_files import wait_for


def main(arguments: Sequence[str] | None = None) -> None:
    launcher_watch.end_with_launcher()
    options, rank = parse(arguments), rank_from_environment()
    if rank.world > 1 and "-" in (*options.input, *options.exclude):
        raise AmplifyError(f"{STANDARD_INPUT} reaches one process, and this build has {rank.world}. Give a file.")
    with sigterm_interrupts(), connected(rank) as ranks:
        launcher_watch.met()
        built = _build(options, ranks)
        launcher_watch.finished()
    if rank.number:
        return
    for part, output in options.outputs.items():
        if part in built:
            manifest = Shards(output).manifest
            print(table([*counts(manifest), ("shards", f"{len(manifest['shards'])} in {output}")]))
        else:
            remove_leftovers(output)
            print(f"{output} is complete, with the same sequences and settings: reused")
    checks = [("python", "data_prep/inspect_shards.py", output, "--verify") for output in options.outputs.values()]
    print(next_commands(*checks))


def _build(options: BuildOptions, ranks: BuildRanks) -> list[str]:
    """Build the parts that do not exist yet; return their names. AmplifyError if other shards are in their place."""
    rank, settings = ranks.rank, options.settings
    notify = partial(print, "note:", file=sys.stderr) if rank.number == 0 else lambda note: None
    exclude_reading = replace(options.reading, names_for=None)
    inputs = find_sources(options.input, options.reading, notify)
    exclude = find_sources(options.exclude, exclude_reading, notify)
    build_id = digest([settings, len(inputs), rows.CHUNK_BYTES, [source.version for source in (*inputs, *exclude)]])
    if rank.number:
        [(first_build_id, parts, name)] = ranks.wait_for("begun")
        if build_id != first_build_id:
            raise AmplifyError(
                f"{rank} would build other shards than rank 0. Use the same command and the same version of this "
                "program on every machine, and inputs with the same path, size and modification time."
            )
    else:
        parts = [part for part, output in options.outputs.items() if is_free(output)]
        for part, output in options.outputs.items():
            if part not in parts:
                _check_same(output, settings | {"part": part}, inputs, exclude)
    if not parts:
        ranks.publish(begun=[build_id, parts, ""])
        return parts
    with start_workers(options.workers, rank, ranks.check) as workers, ExitStack() as stack:
        if rank.number == 0:
            workspaces = {part: stack.enter_context(building(options.outputs[part])) for part in parts}
            name = workspaces[parts[0]].work.name
            ranks.publish(begun=[build_id, parts, name])
        work = partial_directory(options.outputs[parts[0]]) / name  # intermediate results are beside the first output
        wait_for(work)
        inspected = inspect_inputs([*inputs, *exclude], work, workers)
        origins = {"inputs": describe(inputs, inspected.hashes), "exclude": describe(exclude, inspected.hashes)}
        scattered, excluded = scatter_inputs(inputs, exclude, inspected, options.rules, settings, work, workers)
        check_unchanged(inputs, options.reading)
        check_unchanged(exclude, exclude_reading)
        check_records([*scattered, *excluded])
        packed = {part: pack_part(part, scattered, excluded, settings, work, workers) for part in parts}
        if rank.number == 0:
            manifests = {part: make_manifest(part, settings, origins, scattered, packed[part]) for part in parts}
            for part, manifest in manifests.items():
                _publish(manifest, work, workspaces[part].shards)
        ranks.ready()
    return parts


def _publish(manifest: dict, work: Path, directory: Path) -> None:
    """Move the shards from `work` into `directory`, remove anything else there, and write the manifest."""
    shards = [publish_shard(entry, work, directory, number) for number, entry in enumerate(manifest["shards"])]
    published = {name for entry in shards for name in entry["files"]}
    for path in directory.iterdir():
        if path.name not in published:
            path.unlink()
    write_manifest(directory, manifest | {"shards": shards})


def is_free(output: Path) -> bool:
    """Return whether `output` does not exist or is an empty directory."""
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def _check_same(output: Path, settings: dict, inputs: Sequence[Source], exclude: Sequence[Source]) -> None:
    """Raise AmplifyError unless `output`, which exists, holds shards with these settings and sources."""
    if not (output / MANIFEST).exists():
        raise AmplifyError(
            f"{output} is a file, or holds other files without a {MANIFEST}. Choose a new or empty "
            "--output directory; nothing was changed."
        )
    manifest = Shards(output).manifest
    manifest.setdefault("reading", {})  # an earlier version had no such options
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
        elif any(source.read_once_only for source in sources):
            differences.append(f"{name}: standard input, which cannot be compared with that of the earlier build")
    if not differences:
        verify(output)
    else:
        raise AmplifyError(
            f"{output} holds shards with other settings or sequences: {'; '.join(differences)}. Choose "
            "another --output directory, or delete this one; nothing was changed."
        )


if __name__ == "__main__":
    command(main)
