"""Compute the probabilities of residues at positions of a protein, by one of two methods that are not comparable.

masked     each position is replaced by <mask>, one at a time: n copies of a protein of n residues. log p(x_i | rest).
one pass   the protein is read once, unmasked. log p(x_i | all of x): a fast approximation in which the model sees the
           residue it predicts, so perplexities are lower and the ranking of mutations differs.

Pseudo-perplexity (Salazar et al. 2020) of a protein: exp(− mean over its residues of log p). Probabilities are over all
tokens. Positions with <unk> or <mask> are read but not scored. In a protein longer than the limit, each position is
scored in its window (windows.py), so a masked copy is never longer than the limit.
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
    """Positions to score in one protein. number: of the protein in the input, from 0. tokens: uint8 [n]. positions:
    int64, from 0, ascending."""

    number: int
    tokens: np.ndarray
    positions: np.ndarray


def known_sites(proteins: Iterable[Protein]) -> Iterator[Sites]:
    """Yield, for every protein, the positions that are neither <unk> nor <mask>."""
    for number, protein in enumerate(proteins):
        yield Sites(number, protein.tokens, np.flatnonzero((protein.tokens != UNK) & (protein.tokens != MASK)))


def chunked(
    sites: Iterable[Sites], one_pass: bool, max_length: int, limit: int = CHUNK_TOKENS
) -> Iterator[list[Sites]]:
    """Yield lists of sites of about `limit` tokens to compute. With masks, a long protein is split over several."""
    chunk: list[Sites] = []
    used = 0
    for number, tokens, positions in sites:
        copy_tokens = min(len(tokens) + 2, max_length)
        step = max(1, len(positions)) if one_pass else max(1, limit // copy_tokens)
        for begin in range(0, len(positions), step):
            part = positions[begin : begin + step]
            cost = len(tokens) + 2 if one_pass else len(part) * copy_tokens
            if chunk and used + cost > limit:
                yield chunk
                chunk, used = [], 0
            chunk.append(Sites(number, tokens, part))
            used += cost
    if chunk:
        yield chunk


def log_probabilities(reader: Reader, chunk: list[Sites], one_pass: bool) -> np.ndarray:
    """Return float32 [all positions of the chunk, V]: log p of every token at each position, in order."""
    all_windows = []  # (sequence, start, stop, positions in the sequence, index of the first position in the result)
    count = 0
    for _, tokens, positions in chunk:
        sequence = framed(tokens)
        starts, borders, length = windows(len(sequence), reader.max_length)
        owners = np.searchsorted(borders, positions + 1, side="right") - 1
        for window in np.unique(owners):
            inside = positions[owners == window] + 1
            groups = [inside] if one_pass else inside[:, None]
            for group in groups:
                all_windows.append((sequence, starts[window], starts[window] + length, group, count))
                count += len(group)
    result = np.empty((count, reader.model.config.vocab_size), np.float32)
    for row in rows([stop - start for _, start, stop, *_ in all_windows], reader.row_tokens):
        inputs, input_indices, result_indices, offset = [], [], [], 0
        for sequence, start, stop, group, first in (all_windows[i] for i in row):
            tokens = sequence[start:stop].copy()
            if not one_pass:
                tokens[group - start] = MASK
            inputs.append(tokens)
            input_indices.append(offset + group - start)
            result_indices.append(first + np.arange(len(group)))
            offset += stop - start
        result[np.concatenate(result_indices)] = reader.log_probabilities(inputs, np.concatenate(input_indices))
    return result


def of_residues(reader: Reader, chunk: list[Sites], one_pass: bool) -> dict[str, np.ndarray]:
    """Return, for each position of the chunk, the number of its protein and log p of its residue."""
    log_p = log_probabilities(reader, chunk, one_pass)
    residues = np.concatenate([tokens[positions] for _, tokens, positions in chunk])
    numbers = np.repeat([sites.number for sites in chunk], [len(sites.positions) for sites in chunk])
    return {"protein": numbers, "log_probability": log_p[np.arange(len(log_p)), residues]}


def perplexities(parts: Iterable[dict[str, np.ndarray]], count: int) -> np.ndarray:
    """Return float64 [count]: exp(− mean log p) of each protein; nan if every residue is <unk>."""
    total, scored = np.zeros(count), np.zeros(count)
    for part in parts:
        numbers = part["protein"]
        np.add.at(total, numbers, part["log_probability"].astype(float))
        np.add.at(scored, numbers, 1)
    with np.errstate(invalid="ignore"):
        return np.exp(-total / scored)
