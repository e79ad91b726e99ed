"""The work of embed and score: read proteins, write a file. Resumable (resumable.py), one chunk in memory at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash

import amplify_ds
from amplify_ds.errors import AmplifyError
from amplify_ds.inference import heatmap, mutations, outputs, scores
from amplify_ds.inference.embeddings import Settings, embed_proteins
from amplify_ds.inference.model import Reader
from amplify_ds.inference.mutation_tables import Table, parse_table
from amplify_ds.inference.name_arrays import encode_names
from amplify_ds.inference.reading import InputStats, Protein, proteins
from amplify_ds.inference.records import Records, Sequences
from amplify_ds.inference.resumable import Chunks, finish, resumable
from amplify_ds.inference.scores import Sites
from amplify_ds.vocab import TOKENS, UNK

CHUNK_TOKENS = 2**17  # half a gigabyte for all residues in float32 with H = 960
Progress = Callable[[int], object]


def protein_chunks(records: Records | Sequences, limit: int = CHUNK_TOKENS) -> Iterator[list[Protein]]:
    """Yield lists of consecutive proteins of about `limit` tokens in all."""
    chunk: list[Protein] = []
    used = 0
    for protein in proteins(records):
        if chunk and used + len(protein.tokens) + 2 > limit:
            yield chunk
            chunk, used = [], 0
        chunk.append(protein)
        used += len(protein.tokens) + 2
    if chunk:
        yield chunk


def embed_file(
    reader: Reader, records: Records, stats: InputStats, output: Path, settings: Settings, progress: Progress
) -> Settings:
    """Write the embeddings of all records to `output` (outputs.py) and return the resolved settings.

    progress: called with the number of residues done.
    """
    outputs.check_format(output)
    settings = settings.resolved(reader.layers)
    job = {"what": "embeddings", **_origin(reader, stats), **settings.as_dict()}
    with resumable(output, job) as chunks:
        for number, chunk in enumerate(protein_chunks(records)):
            lengths = np.array([len(protein.tokens) for protein in chunk], np.int32)
            if number not in chunks:
                names = encode_names([protein.name for protein in chunk])
                chunks.write(number, {**names, "lengths": lengths, **embed_proteins(reader, chunk, settings)})
            progress(int(lengths.sum()))
        sizes = (stats.proteins, stats.residues, stats.longest_name, reader.model.config.hidden_size)
        shape = outputs.Shape(*sizes, settings, {"version": amplify_ds.__version__, **job})
        finish(output, chunks, lambda path: outputs.write(path, chunks, shape))
    return settings


def score_file(
    reader: Reader, records: Records, stats: InputStats, output: Path, one_pass: bool, progress: Progress
) -> np.ndarray:
    """Write a CSV with the perplexity of every record and return the perplexities.

    progress: called with the number of positions done.
    """
    column = "one_pass_perplexity" if one_pass else "pseudo_perplexity"
    with resumable(output, {"what": column, **_origin(reader, stats)}) as chunks:
        _compute_chunks(chunks, reader, scores.known_sites(proteins(records)), one_pass, scores.of_residues, progress)
        perplexities = scores.perplexities(chunks.read(), stats.proteins)

        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(["name", "length", "unknown", column])
                for protein, value in zip(proteins(records), perplexities):
                    unknown = int((protein.tokens == UNK).sum())
                    table.writerow([protein.name, len(protein.tokens), unknown, f"{value:.6g}"])

        finish(output, chunks, write)
    return perplexities


def effects_file(
    reader: Reader,
    wild_types: dict[str, np.ndarray],
    stats: InputStats,
    table: Table,
    output: Path,
    one_pass: bool,
    progress: Progress,
    offset: int = 0,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Write a CSV: the table with a column for the effect of each row.

    Return (protein names, effects, wild), one value per row; wild is True for rows of the wild type. wild_types: {name:
    tokens} of the proteins that the table may name. offset: see `mutations.parse`.
    """
    parsed = parse_table(table, wild_types, offset)
    column = "wild_type_marginal" if one_pass else "masked_marginal"
    if column in table.header:
        raise AmplifyError(f"{table.path}: already has a column {column}; rename it")
    changed: dict[str, set[int]] = {}
    for name, changes in parsed:
        changed.setdefault(name, set()).update(position for position, *_ in changes)
    positions = {name: np.array(sorted(changed[name]), np.int64) for name in sorted(changed)}
    sites = [Sites(number, wild_types[name], positions[name]) for number, name in enumerate(positions)]
    job = _job(column, reader, stats, sites)
    with resumable(output, job) as chunks:
        _compute_chunks(chunks, reader, sites, one_pass, _all_tokens, progress)
        log_p = dict(zip(positions, _matrices(chunks, sites)))
        effects = np.array([mutations.effect(changes, log_p[name]) for name, changes in parsed])
        finish(output, chunks, lambda path: _write_effects(path, table, column, effects))
    return [name for name, _ in parsed], effects, np.array([not changes for _, changes in parsed])


def heatmap_file(
    reader: Reader, protein: Protein, stats: InputStats, output: Path, one_pass: bool, progress: Progress
) -> None:
    """Write a PNG: a heat map of the effects of every single mutation of a protein."""
    if len(protein.tokens) > heatmap.LONGEST:
        raise AmplifyError(
            f"{protein.name}: has {len(protein.tokens):,} residues, a heat map shows at most {heatmap.LONGEST:,}; give "
            "a part of the protein, or a table of mutations (--mutations)"
        )
    sites = [Sites(0, protein.tokens, np.arange(len(protein.tokens)))]
    with resumable(output, _job(f"heat map, one pass {one_pass}", reader, stats, sites)) as chunks:
        _compute_chunks(chunks, reader, sites, one_pass, _all_tokens, progress)
        (log_p,) = _matrices(chunks, sites)
        finish(output, chunks, lambda path: heatmap.draw(path, protein.name, protein.tokens, log_p, one_pass))


def _job(kind: str, reader: Reader, stats: InputStats, sites: list[Sites]) -> dict[str, object]:
    positions = xxhash.xxh3_128_hexdigest(b"".join(x.tokens.tobytes() + x.positions.tobytes() for x in sites))
    return {"what": kind, **_origin(reader, stats), "positions": positions}


def _matrices(chunks: Chunks, sites: list[Sites]) -> list[np.ndarray]:
    """Return a float32 matrix [n, V] for each protein of `sites`; positions that were not computed are nan."""
    matrices = [np.full((len(x.tokens), len(TOKENS)), np.nan, np.float32) for x in sites]
    for arrays in chunks.read():
        parts = {name: arrays[name] for name in ("protein", "position", "log_probability")}
        for number in np.unique(parts["protein"]):
            rows = parts["protein"] == number
            matrices[number][parts["position"][rows]] = parts["log_probability"][rows]
    return matrices


def _write_effects(path: Path, table: Table, column: str, effects: np.ndarray) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*table.header, column])
        writer.writerows([*row, f"{value:.6g}"] for row, value in zip(table.rows, effects))


def _compute_chunks(chunks: Chunks, reader: Reader, sites, one_pass: bool, compute, progress: Progress) -> None:
    """Compute and write the chunks that are not there yet."""
    for number, chunk in enumerate(scores.chunked(sites, one_pass, reader.max_length)):
        if number not in chunks:
            chunks.write(number, compute(reader, chunk, one_pass))
        progress(sum(len(positions) for *_, positions in chunk))


def _all_tokens(reader: Reader, chunk: list[Sites], one_pass: bool) -> dict[str, np.ndarray]:
    return {
        "protein": np.repeat([sites.number for sites in chunk], [len(sites.positions) for sites in chunk]),
        "position": np.concatenate([sites.positions for sites in chunk]),
        "log_probability": scores.log_probabilities(reader, chunk, one_pass),
    }


def _origin(reader: Reader, stats: InputStats) -> dict[str, object]:
    """Return what the results depend on, apart from the settings of the job."""
    return {
        "sequences": stats.sha256,
        "model": reader.fingerprint(),
        "max_length": reader.max_length,
        "precision": str(reader.dtype).removeprefix("torch."),
    }
