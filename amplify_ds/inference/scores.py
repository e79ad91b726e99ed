"""How likely a model finds residues where they stand, in two ways that are not comparable with each other.

masked     each position is replaced by <mask>, one at a time: n copies of a protein of n residues. log p(x_i | rest).
one pass   the protein is read once as it is. log p(x_i | all of x): a quick approximation that has seen the answer, so
           its perplexities are lower and its ranking of mutations differs.

Pseudo-perplexity (Salazar et al. 2020) of a protein: exp(− mean over its residues of log p). Probabilities are over all
tokens. A position that holds <unk> or <mask> is read, not scored. Of a protein longer than the limit, each position is
scored in the window that windows.py names for it, so a masked copy is never longer than the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from amplify_ds.inference.embeddings import framed
from amplify_ds.inference.model import Reader
from amplify_ds.inference.reading import Protein
from amplify_ds.inference.windows import rows, windows
from amplify_ds.vocab import MASK, UNK

CHUNK_TOKENS = 2**19


class Sites(NamedTuple):
    """Positions (int64, from 0, ascending) of the protein with this number (from 0) in the input."""

    number: int
    tokens: np.ndarray
    positions: np.ndarray


def known_sites(proteins: Iterable[Protein]) -> Iterator[Sites]:
    """Every position of every protein that holds neither <unk> nor <mask>."""
    for number, protein in enumerate(proteins):
        yield Sites(number, protein.tokens, np.flatnonzero((protein.tokens != UNK) & (protein.tokens != MASK)))


def chunked(
    sites: Iterable[Sites], one_pass: bool, max_length: int, limit: int = CHUNK_TOKENS
) -> Iterator[list[Sites]]:
    """Lists of about `limit` tokens to compute. With masks a long protein is divided among several."""
    chunk: list[Sites] = []
    used = 0
    for number, tokens, positions in sites:
        copy = min(len(tokens) + 2, max_length)
        at_once = max(1, len(positions)) if one_pass else max(1, limit // copy)
        for begin in range(0, len(positions), at_once):
            part = positions[begin : begin + at_once]
            cost = len(tokens) + 2 if one_pass else len(part) * copy
            if chunk and used + cost > limit:
                yield chunk
                chunk, used = [], 0
            chunk.append(Sites(number, tokens, part))
            used += cost
    if chunk:
        yield chunk


def log_probabilities(reader: Reader, chunk: list[Sites], one_pass: bool) -> np.ndarray:
    """float32 [all positions of the chunk, V]: log p of every token at each position, in order."""
    pieces = []  # (sequence, start, stop, positions in the sequence, the first one's place in the result)
    place = 0
    for _, tokens, positions in chunk:
        sequence = framed(tokens)
        starts, borders, length = windows(len(sequence), reader.max_length)
        owners = np.searchsorted(borders, positions + 1, side="right") - 1
        for window in np.unique(owners):
            inside = positions[owners == window] + 1
            groups = [inside] if one_pass else inside[:, None]
            for group in groups:
                pieces.append((sequence, starts[window], starts[window] + length, group, place))
                place += len(group)
    result = np.empty((place, reader.model.config.vocab_size), np.float32)
    for row in rows([stop - start for _, start, stop, *_ in pieces], reader.row_tokens):
        read, places, targets, begin = [], [], [], 0
        for sequence, start, stop, group, first in (pieces[i] for i in row):
            window = sequence[start:stop].copy()
            if not one_pass:
                window[group - start] = MASK
            read.append(window)
            places.append(begin + group - start)
            targets.append(first + np.arange(len(group)))
            begin += stop - start
        result[np.concatenate(targets)] = reader.log_probabilities(read, np.concatenate(places))
    return result


def of_residues(reader: Reader, chunk: list[Sites], one_pass: bool) -> dict[str, np.ndarray]:
    """Log p of the residue that stands at each position, and the number of its protein."""
    found = log_probabilities(reader, chunk, one_pass)
    standing = np.concatenate([tokens[positions] for _, tokens, positions in chunk])
    numbers = np.repeat([sites.number for sites in chunk], [len(sites.positions) for sites in chunk])
    return {"protein": numbers, "log_probability": found[np.arange(len(found)), standing]}


def perplexities(parts: Iterable[dict[str, np.ndarray]], count: int) -> np.ndarray:
    """float64 [count]: exp(− mean log p) of each protein; nan where every residue is <unk>."""
    total, scored = np.zeros(count), np.zeros(count)
    for part in parts:
        numbers = part["protein"]
        np.add.at(total, numbers, part["log_probability"].astype(float))
        np.add.at(scored, numbers, 1)
    with np.errstate(invalid="ignore"):
        return np.exp(-total / scored)
