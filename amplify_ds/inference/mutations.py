"""Tables of mutations, and their effects as a model sees them.

A mutation is written A23V: wild-type residue, position from 1, new residue; several at once are joined by `:`. Tables
are CSV or TSV with a header. Columns: `mutant` (or `mutation`, `mutations`); `name` when the FASTA holds several
proteins; `mutated_sequence` and `DMS_score` as in ProteinGym, the first compared with the mutation, the second with the
effects. Other columns are carried along.

Effect of a mutation: Σ over its positions of log p(new) − log p(wild type), in the wild-type sequence, each position on
its own: masked alone (masked-marginal) or not masked (wild-type-marginal, one pass). Meier et al. 2021.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.vocab import RESIDUES, TOKENS, encode_bytes

MUTANT, NAME, SEQUENCE, MEASURED = ("mutant", "mutation", "mutations"), "name", "mutated_sequence", "DMS_score"
_ONE = re.compile(r"([A-Z])([0-9]+)([A-Z])")
_SHOWN = 5


class Malformed(ValueError):
    """What is wrong with one mutation."""


@dataclass(frozen=True)
class Table:
    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]  # of each row in the file, from 1

    def column(self, name: str) -> list[str] | None:
        index = self.header.index(name) if name in self.header else None
        return None if index is None else [row[index] for row in self.rows]

    @property
    def mutants(self) -> list[str]:
        return self.column(next(name for name in MUTANT if name in self.header))

    def measured(self) -> np.ndarray | None:
        """float64 [rows], nan where nothing was measured; None without the column."""
        column = self.column(MEASURED)
        return None if column is None else np.array([_number(text) for text in column])


def read_table(path: Path) -> Table:
    """Raises AmplifyError for a file that is no such table, naming the line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = next(reader, [])
            found = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AmplifyError(f"{path}: cannot be read as a table of mutations: {error}") from None
    if not set(MUTANT) & set(header):
        raise AmplifyError(
            f"{path}: expected a header with a column {' or '.join(MUTANT)}, found "
            f"{', '.join(header)[:80] or 'nothing'}"
        )
    for line, row in found:
        if len(row) != len(header):
            raise AmplifyError(f"{path}, line {line}: has {len(row)} columns, the header has {len(header)}")
    if not found:
        raise AmplifyError(f"{path}: holds no mutation")
    return Table(path, header, [row for _, row in found], [line for line, _ in found])


def parse(mutant: str, wild_type: np.ndarray) -> list[tuple[int, int, int]]:
    """[(position from 0, wild-type token, new token)]; wild_type: token ids. Raises Malformed."""
    changes = {}
    for text in mutant.strip().split(":"):
        match = _ONE.fullmatch(text.strip().upper())
        if not match or match[3] not in RESIDUES:
            raise Malformed(f"{text.strip()!r} is no mutation such as A23V or A23V:G45D of the 20 residues")
        old, position, new = match[1], int(match[2]), match[3]
        if not 1 <= position <= len(wild_type):
            raise Malformed(f"{text.strip()}: the protein has the positions 1 to {len(wild_type)}")
        if (stands := TOKENS[wild_type[position - 1]]) != old:
            raise Malformed(f"{text.strip()}: {stands} stands at {position}, not {old}")
        if position - 1 in changes:
            raise Malformed(f"{mutant.strip()}: changes position {position} twice")
        changes[position - 1] = (TOKENS.index(old), TOKENS.index(new))
    return [(position, *tokens) for position, tokens in sorted(changes.items())]


def parse_table(table: Table, proteins: dict[str, np.ndarray]) -> list[tuple[str, list[tuple[int, int, int]]]]:
    """(name of the protein, its changes) of each row. Raises AmplifyError that names the lines that do not fit."""
    names = table.column(NAME) or [next(iter(proteins))] * len(table.rows)
    if table.column(NAME) is None and len(proteins) > 1:
        raise AmplifyError(f"{table.path}: needs a column {NAME!r}, for the FASTA holds several proteins")
    sequences = table.column(SEQUENCE) or [""] * len(table.rows)
    parsed, wrong = [], []
    for line, name, mutant, sequence in zip(table.lines, names, table.mutants, sequences):
        try:
            if name not in proteins:
                raise Malformed(f"no protein in the FASTA is named {name!r}")
            changes = parse(mutant, proteins[name])
            if sequence and encode_bytes(sequence.encode("ascii", "replace")) != _mutated(proteins[name], changes):
                raise Malformed(f"{mutant}: {SEQUENCE} is not the protein of the FASTA with this mutation")
            parsed.append((name, changes))
        except Malformed as error:
            wrong.append(f"line {line}: {error}")
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise AmplifyError(
            f"{table.path}: {len(wrong):,} of {len(table.rows):,} rows do not fit the protein:\n  "
            + "\n  ".join(wrong[:_SHOWN])
            + more
        )
    return parsed


def effect(changes: Iterable[tuple[int, int, int]], log_p: np.ndarray) -> float:
    """Σ log p(new) − log p(wild type); log_p [positions of the protein, V]."""
    return float(sum(float(log_p[position, new]) - float(log_p[position, old]) for position, old, new in changes))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, equal values sharing their mean rank; nan where one of the two is constant."""
    a, b = (_ranks(x) - (len(x) + 1) / 2 for x in (np.asarray(a, float), np.asarray(b, float)))
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _mutated(tokens: np.ndarray, changes: list[tuple[int, int, int]]) -> bytes:
    tokens = tokens.copy()
    for position, _, new in changes:
        tokens[position] = new
    return tokens.tobytes()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
