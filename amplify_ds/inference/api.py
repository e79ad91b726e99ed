"""The Python interface: `amplify_ds.embed`, `score`, `mutation_effects`, `contacts`. Results are kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference import model, mutations, reading, scores
from amplify_ds.inference.contacts import fitting
from amplify_ds.inference.contacts.head import read as read_head
from amplify_ds.inference.contacts.targets import Target, limit_length
from amplify_ds.inference.embeddings import Settings, embed_proteins
from amplify_ds.inference.pipelines import protein_chunks
from amplify_ds.inference.records import Sequences, records_of


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of P proteins. mean, bos, max: [P, H]. residues: one [length, H] per protein. None: not requested."""

    names: list[str]
    lengths: np.ndarray
    mean: np.ndarray | None = None
    bos: np.ndarray | None = None
    max: np.ndarray | None = None
    residues: list[np.ndarray] | None = None


def embed(
    model_name: str | Path | model.Reader,
    sequences: str | Path | Mapping[str, str] | Iterable[str],
    include: Sequence[str] = ("mean",),
    layer: int | None = None,
    raw: bool = False,
    dtype: str = "float32",
    strict: bool = False,
    **loading,
) -> Embeddings:
    """Return the embeddings of proteins.

    model_name: a checkpoint, run, Hugging Face folder or hub name, or the result of `amplify_ds.load`. sequences: a
    file in any format that the command reads, {name: sequence}, or a list of sequences. include: any of "mean", "bos",
    "max", "residues". layer: 0 (the embedding) to the last (default). raw: skip the final norm. strict: refuse
    characters that are no token instead of reading them as <unk>. loading: device, precision, max_length, row_tokens,
    see `amplify_ds.load`. Raises AmplifyError for invalid sequences, models and settings.
    """
    records = records_of(sequences)
    reading.check(records, strict)
    reader = model.load(model_name, **loading)
    settings = Settings(tuple(include), layer, raw, dtype).resolved(reader.layers)
    names, lengths, parts = [], [], []
    for chunk in protein_chunks(records):
        names += [protein.name for protein in chunk]
        lengths += [len(protein.tokens) for protein in chunk]
        parts.append(embed_proteins(reader, chunk, settings))
    arrays: dict[str, Any] = {kind: np.concatenate([part[kind] for part in parts]) for kind in settings.include}
    if "residues" in arrays:
        arrays["residues"] = np.split(arrays["residues"], np.cumsum(lengths)[:-1])
    return Embeddings(names, np.array(lengths), **arrays)


def score(
    model_name: str | Path | model.Reader,
    sequences: str | Path | Mapping[str, str] | Iterable[str],
    one_pass: bool = False,
    strict: bool = False,
    **loading,
) -> dict[str, float]:
    """Return {name: pseudo-perplexity}, masking one position at a time.

    one_pass: read each protein once, unmasked (see scores.py); the values are not comparable with pseudo-perplexities.
    Other arguments are those of `embed`.
    """
    records = records_of(sequences)
    stats = reading.check(records, strict)
    reader = model.load(model_name, **loading)
    sites = scores.known_sites(reading.proteins(records))
    chunks = scores.chunked(sites, one_pass, reader.max_length)
    values = scores.perplexities((scores.of_residues(reader, chunk, one_pass) for chunk in chunks), stats.proteins)
    return {name: float(value) for (name, _), value in zip(records, values)}


def mutation_effects(
    model_name: str | Path | model.Reader, sequence: str, mutants: Sequence[str], one_pass: bool = False, **loading
) -> np.ndarray:
    """Return float64 [mutants]: the effects of mutations such as "A23V" or "A23V:G45D" of one protein (mutations.py).

    The effect is masked-marginal, or wild-type-marginal with one_pass. Raises AmplifyError for a mutation that does not
    fit the protein.
    """
    records = Sequences([("the protein", sequence)])
    reading.check(records)
    tokens = next(reading.proteins(records)).tokens
    try:
        parsed = [mutations.parse(mutant, tokens) for mutant in mutants]
    except mutations.Malformed as error:
        raise AmplifyError(f"mutants: {error}") from None
    reader = model.load(model_name, **loading)
    positions = np.array(sorted({position for changes in parsed for position, *_ in changes}), np.int64)
    log_p = np.full((len(tokens), reader.model.config.vocab_size), np.nan, np.float32)
    begin = 0
    for chunk in scores.chunked([scores.Sites(0, tokens, positions)], one_pass, reader.max_length):
        rows = scores.log_probabilities(reader, chunk, one_pass)
        log_p[positions[begin : begin + len(rows)]] = rows
        begin += len(rows)
    return np.array([mutations.effect(changes, log_p) for changes in parsed])


def contacts(
    model_name: str | Path | model.Reader,
    head: str | Path,
    sequences: str | Path | Mapping[str, str] | Iterable[str],
    strict: bool = False,
    device: str | None = None,
) -> dict[str, np.ndarray]:
    """Return {name: float32 [n, n]}: the contact probability of each pair of residues.

    head: a file that `python -m amplify_ds.contacts fit` wrote for this model. Other arguments are those of `embed`;
    the computation is in float32. Raises AmplifyError for a head that was fitted to another model, and for a protein
    longer than the model's limit.
    """
    records = records_of(sequences)
    reading.check(records, strict)
    fitted_head = read_head(Path(head))
    reader = model_name if isinstance(model_name, model.Reader) else model.load(model_name, device, "fp32")
    fitted_head.check_model(reader, str(head))
    targets = [Target(*protein) for protein in reading.proteins(records)]
    limit_length(targets, reader.max_length, skip_long=False)
    return {target.name: fitting.predict(reader, fitted_head, target.tokens) for target in targets}
