"""Read tables of mutations.

A table is a CSV or TSV file (or has columns separated by ";") with a header, plain or compressed. Columns: `mutant` (or
another name in MUTANT); `name` if the input has several proteins; as in ProteinGym, `mutated_sequence`, which must
agree with the mutation or replaces it, and `DMS_score`, which is compared with the effects. Other columns are copied to
the output.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.mutations import Changes, Malformed, compare, find_offset, parse
from amplify_ds.prepare.batches import decoded
from amplify_ds.prepare.formats import UTF8_MARK
from amplify_ds.prepare.streams import open_stream
from amplify_ds.vocab import encode_bytes

MUTANT, NAME = ("mutant", "mutation", "mutations", "variant", "hgvs_pro"), "name"
SEQUENCE, MEASURED = "mutated_sequence", "DMS_score"
_SHOWN = 5


@dataclass(frozen=True)
class Table:
    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]  # line of each row in the file, from 1

    def column(self, name: str) -> list[str] | None:
        """Return the values of a column, or None if the table does not have it."""
        index = self.header.index(name) if name in self.header else None
        return None if index is None else [row[index] for row in self.rows]

    @property
    def mutants(self) -> list[str] | None:
        return self.column(next((name for name in MUTANT if name in self.header), ""))

    def measured(self) -> np.ndarray | None:
        """Return the column MEASURED as float64 [rows], nan for empty cells; None if there is no such column."""
        column = self.column(MEASURED)
        return None if column is None else np.array([_number(text) for text in column])


def read_table(path: Path) -> Table:
    """Read a table. Raises AmplifyError, with the line, if the file is not a table of mutations."""
    try:
        with open_stream(str(path), lambda read: None) as stream:
            text = decoded(stream.read().removeprefix(UTF8_MARK))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, EOFError, csv.Error) as error:
        raise AmplifyError(f"{path}: cannot be read as a table of mutations: {error}") from None
    if not {*MUTANT, SEQUENCE} & set(header):
        raise AmplifyError(
            f"{path}: expected a header with a column {', '.join(MUTANT)} or {SEQUENCE}, found "
            f"{', '.join(header)[:80] or 'nothing'}"
        )
    if duplicates := sorted(name for name in {*MUTANT, SEQUENCE, NAME, MEASURED} if header.count(name) > 1):
        raise AmplifyError(f"{path}: two columns have the name {duplicates[0]}; rename one of them")
    for line, row in rows:
        if len(row) != len(header):
            raise AmplifyError(f"{path}, line {line}: has {len(row)} columns, the header has {len(header)}")
    if not rows:
        raise AmplifyError(f"{path}: contains no mutations")
    return Table(path, header, [row for _, row in rows], [line for line, _ in rows])


def parse_table(table: Table, proteins: Mapping[str, np.ndarray], offset: int = 0) -> list[tuple[str, Changes]]:
    """Return (protein name, changes) of each row. Raises AmplifyError with the lines that do not fit their protein.

    offset: see `mutations.parse`.
    """
    names = table.column(NAME) or [next(iter(proteins))] * len(table.rows)
    if table.column(NAME) is None and len(proteins) > 1:
        raise AmplifyError(f"{table.path}: needs a column {NAME!r}, because the input has several proteins")
    mutants, sequences = table.mutants, table.column(SEQUENCE) or [""] * len(table.rows)
    parsed, wrong, misplaced = [], [], False
    for number, (line, name, sequence) in enumerate(zip(table.lines, names, sequences)):
        try:
            if name not in proteins:
                raise Malformed(f"no protein in the input is named {name!r}")
            changes = _changes(mutants[number] if mutants else None, sequence, proteins[name], offset)
            parsed.append((name, changes))
        except Malformed as error:
            wrong.append(f"line {line}: {error}")
            misplaced |= error.misplaced
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise AmplifyError(
            f"{table.path}: {len(wrong):,} of {len(table.rows):,} rows do not fit the protein:\n  "
            + "\n  ".join(wrong[:_SHOWN])
            + more
            + (_advice(mutants, proteins) if misplaced and mutants else "")
        )
    return parsed


def _changes(mutant: str | None, sequence: str, wild_type: np.ndarray, offset: int) -> Changes:
    """Return the changes of a row. Raises Malformed if it has a mutant and a sequence that disagree."""
    if mutant is None:
        return compare(sequence, wild_type)
    changes = parse(mutant, wild_type, offset)
    if sequence and encode_bytes(sequence.encode("ascii", "replace")) != _mutated(wild_type, changes):
        raise Malformed(f"{mutant}: {SEQUENCE} differs from the input protein with this mutation")
    return changes


def _advice(mutants: list[str], proteins: Mapping[str, np.ndarray]) -> str:
    """Return advice to use the offset with which all rows fit, if there is one protein and one such offset."""
    offset = find_offset(mutants, next(iter(proteins.values()))) if len(proteins) == 1 else None
    return f"\nWith --offset {offset} all wild-type residues fit" if offset else ""


def _delimiter(text: str) -> str:
    """Return the delimiter that gives the first line a known column, or a comma."""
    line = text.lstrip("\r\n").split("\n", 1)[0].strip("\r")
    known = {*MUTANT, SEQUENCE}
    return next((mark for mark in ",\t;" if known & {name.strip().strip('"') for name in line.split(mark)}), ",")


def _mutated(tokens: np.ndarray, changes: Changes) -> bytes:
    tokens = tokens.copy()
    for position, _, new in changes:
        tokens[position] = new
    return tokens.tobytes()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
