"""The calls for Python: `amplify_ds.embed`, `score`, `mutation_effects`, `contacts`. All is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference import model, mutations, reading, scores
from amplify_ds.inference.contacts import fitting as contact_jobs
from amplify_ds.inference.contacts.head import read as read_head
from amplify_ds.inference.contacts.targets import Target, fitting
from amplify_ds.inference.embeddings import Settings, embed_proteins
from amplify_ds.inference.pipelines import protein_chunks
from amplify_ds.inference.records import Sequences, records_of


@dataclass(frozen=True)
class Embeddings:
    """names and lengths of the proteins; those asked for of mean, bos, max [P, H]; residues: [length, H] of each."""

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
    """Embed proteins: a file in any form that the command reads, {name: sequence} or plain sequences.

    model_name: a checkpoint, run, Hugging Face folder or hub name, or what `amplify_ds.load` made of one. include: of
    "mean", "bos", "max", "residues". layer: 0 (the embedding) to the last, which is the default; the final norm follows
    unless raw. strict: refuse what is no token instead of reading it as <unk>. loading: device, precision, max_length,
    row_tokens, see `amplify_ds.load`. Raises AmplifyError for what cannot be embedded.
    """
    records = records_of(sequences)
    reading.check(records, strict)
    reader = model.load(model_name, **loading)
    settings = Settings(tuple(include), layer, raw, dtype).resolved(reader.layers)
    names, lengths, parts = [], [], []
    for some in protein_chunks(records):
        names += [protein.name for protein in some]
        lengths += [len(protein.tokens) for protein in some]
        parts.append(embed_proteins(reader, some, settings))
    found: dict[str, Any] = {kind: np.concatenate([part[kind] for part in parts]) for kind in settings.include}
    if "residues" in found:
        found["residues"] = np.split(found["residues"], np.cumsum(lengths)[:-1])
    return Embeddings(names, np.array(lengths), **found)


def score(
    model_name: str | Path | model.Reader,
    sequences: str | Path | Mapping[str, str] | Iterable[str],
    one_pass: bool = False,
    strict: bool = False,
    **loading,
) -> dict[str, float]:
    """{name: pseudo-perplexity}, every position masked in turn; one_pass: the quick approximation of scores.py, not
    comparable with it. Arguments as for `embed`.
    """
    records = records_of(sequences)
    contents = reading.check(records, strict)
    reader = model.load(model_name, **loading)
    sites = scores.known_sites(reading.proteins(records))
    chunks = scores.chunked(sites, one_pass, reader.max_length)
    found = scores.perplexities((scores.of_residues(reader, chunk, one_pass) for chunk in chunks), contents.proteins)
    return {name: float(value) for (name, _), value in zip(records, found)}


def mutation_effects(
    model_name: str | Path | model.Reader, sequence: str, mutants: Sequence[str], one_pass: bool = False, **loading
) -> np.ndarray:
    """float64 [mutants]: effects of mutations such as "A23V" or "A23V:G45D" of one protein, as mutations.py says:
    masked-marginal, or wild-type-marginal with one_pass. Raises AmplifyError for one that does not fit the protein.
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
        found = scores.log_probabilities(reader, chunk, one_pass)
        log_p[positions[begin : begin + len(found)]] = found
        begin += len(found)
    return np.array([mutations.effect(changes, log_p) for changes in parsed])


def contacts(
    model_name: str | Path | model.Reader,
    head: str | Path,
    sequences: str | Path | Mapping[str, str] | Iterable[str],
    strict: bool = False,
    device: str | None = None,
) -> dict[str, np.ndarray]:
    """{name: float32 [n, n]}: the probability of contact of each pair of residues, from a head that
    `python -m amplify_ds.contacts fit` made of this model. Other arguments as for `embed`; computed in float32.

    Raises AmplifyError for a head of another model, and for a protein longer than the model's limit.
    """
    records = records_of(sequences)
    reading.check(records, strict)
    found = read_head(Path(head))
    reader = model_name if isinstance(model_name, model.Reader) else model.load(model_name, device, "fp32")
    found.check_model(reader, str(head))
    targets = [Target(*protein) for protein in reading.proteins(records)]
    fitting(targets, reader.max_length, skip_long=False)
    return {target.name: contact_jobs.predict(reader, found, target.tokens) for target in targets}
