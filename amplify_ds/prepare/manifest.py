"""Make manifest.json: the settings, where the sequences come from, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amplify_ds import __version__
from amplify_ds.data.shards import FORMAT, FORMAT_VERSION
from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.chunks import Source
from amplify_ds.prepare.clean import Rules
from amplify_ds.structured import parse_json
from amplify_ds.vocab import SPECIAL, VOCABULARY_SHA256, encode

NOT_IN = {"train": ("validation", "in the validation set"), "validation": ("train", "in the training set")}


def make_manifest(
    part: str,
    settings: dict,
    origins: Mapping[str, list[dict]],
    scattered: Sequence[dict],
    packed: Sequence[dict],
) -> dict:
    """Return the manifest of a part; AmplifyError if no sequence is usable.

    origins: `describe` of the inputs and of the excluded sources. scattered, packed: results of the chunks and of the
    shards; the latter hold the entries of the shards.
    """
    normalised: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for result in scattered:
        noted.update(result["noted"])
        normalised.update(result["mended"])
        rejected.update(result["rejected"])
        if part in NOT_IN:
            other, reason = NOT_IN[part]
            rejected[reason] += result["sequences"].get(other, 0)
    for result in packed:
        rejected["duplicates"] += result["duplicates"]
        rejected["excluded"] += result["excluded"]
        lengths.update(dict(result["lengths"]))
    name_rules = Rules(**settings["rules"]).name_rules
    shards = [result["shard"] for result in packed if result["shard"]]
    records = sum(result["records"] for result in scattered)
    if not shards:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in _by_reason(rejected).items())
        raise AmplifyError(
            f"no usable sequence among {records:,} records{'' if part == 'all' else f' for {part}'}: {reasons} (why: "
            "amplify_ds/prepare/clean.py). Expected proteins in one-letter code."
        )
    token_counts = np.array([result["token_counts"] for result in packed], dtype=np.int64).sum(axis=0)
    rows, tokens = sum(shard["rows"] for shard in shards), int(token_counts.sum())
    not_residues = int(token_counts[: len(SPECIAL)].sum() + token_counts[encode("|")].sum())
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "amplify_ds_version": __version__,
        "vocabulary_sha256": VOCABULARY_SHA256,
        **settings,
        "part": part,
        **origins,
        "counts": {
            "records": records,
            "sequences": lengths.total(),
            "residues": tokens - not_residues,
            "windows": sum(shard["segments"] for shard in shards),
            "rows": rows,
            "tokens": tokens,
            "mended": _by_reason(normalised),
            "rejected": _by_reason(rejected) | {rule: 0 for rule in name_rules if not rejected[rule]},
            "noted": _by_reason(noted),
        },
        "packing_efficiency": tokens / (rows * settings["row_tokens"]),
        "token_counts": token_counts.tolist(),
        "length_histogram": [[length, lengths[length]] for length in sorted(lengths)],
        "shards": shards,
    }


def describe(sources: Sequence[Source], hashes: Mapping[str, str]) -> list[dict]:
    """Return the entries of sources in the manifest: name, and for files the size, sha256 (of `hashes`) and proof."""
    origins = []
    for source in sources:
        origin: dict[str, Any] = {"name": source.name}
        if source.path:
            origin |= {"bytes": source.bytes, "sha256": hashes.get(source.version)}
            if (proof := proof_path(source.path)).exists():
                origin["proof"] = _read_proof(proof, origin["sha256"])
        origins.append(origin)
    return sorted(origins, key=lambda origin: (origin["name"], origin.get("sha256") or ""))


def proof_path(path: Path) -> Path:
    """Return the file beside a file of sequences in which decontaminate.py records how they were found."""
    return path.with_name(f"{path.name}.proof.json")


def _read_proof(proof: Path, digest: str) -> dict:
    """Return the proof of the file with this checksum; AmplifyError if it is damaged or of another file."""
    try:
        content = parse_json(proof.read_bytes())
        if content["sha256"] == digest:
            return content
        problem = f"belongs to a file with sha256 {content['sha256']}; the one beside it has {digest}"
    except (ValueError, TypeError, KeyError) as error:
        problem = f"is damaged: it is not JSON with a sha256 ({error!r:.200})"
    raise AmplifyError(f"{proof} {problem}. Run decontaminate.py again, or delete {proof.name} to build without it.")


def check_records(scattered: Sequence[dict]) -> None:
    """Raise AmplifyError for a source without records."""
    records: Counter[str] = Counter()
    for result in scattered:
        records[result["source"]] += result["records"]
    for name, count in records.items():
        if not count:
            raise AmplifyError(
                f'{name} holds no FASTA record (lines such as ">name" and "MKV…") and no row of a table.'
            )


def _by_reason(counts: Counter[str]) -> dict[str, int]:
    return {reason: counts[reason] for reason in sorted(counts) if counts[reason]}
