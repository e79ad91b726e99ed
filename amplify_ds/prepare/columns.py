"""Choose the columns of a table that hold the sequences and the names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from amplify_ds.prepare.alphabet import protein_columns
from amplify_ds.prepare.batches import Batch, Malformed, decoded, quoted
from amplify_ds.prepare.reading_options import Reading

# In AIRR and OAS tables `sequence` is the nucleotides, so the amino acids come first.
SEQUENCES = ("sequence_aa", "sequence_alignment_aa", "sequence")
NAMES = ("name", "sequence_id", "entry", "accession", "id")
_CHAINS = ("{}", "sequence_alignment_aa_{}", "sequence_aa_{}", "sequence_{}")
_PROTEIN, _FRAGMENT, _EXISTENCE = "protein names", "fragment", "protein existence"  # of UniProt's tables
_LEVELS = {
    "evidence at protein level": 1,
    "evidence at transcript level": 2,
    "inferred from homology": 3,
    "predicted": 4,
    "uncertain": 5,
}
_EMPTY_CHAIN = "one of two chains is empty"


class Chosen(NamedTuple):
    """The columns to read. sequences: one column, or two to be joined. name: None if there is none. more: {field:
    column} for columns of UniProt's tables that its FASTA headers contain too. noted: the column that the report should
    name, "" for none."""

    sequences: tuple[str, ...]
    name: str | None
    more: dict[str, str]
    noted: str = ""

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.sequences, *filter(None, [self.name]), *self.more.values()]))


Sample = Callable[[], Mapping[str, Sequence[bytes]]]


def choose(columns: Sequence[str], reading: Reading, sample: Sample) -> Chosen:
    """Choose among the columns of a table; sample: returns some cells of each. Raises Malformed if one is missing."""
    sequences = tuple(_chain(columns, chain, sample) for chain in reading.join or ()) or (
        _sequence(columns, reading, sample),
    )
    by_lower_case = {name.lower().strip(): name for name in reversed(columns)}
    name, more = reading.name_column, {}
    if name is None:
        if reading.header:
            name = next((by_lower_case[known] for known in NAMES if known in by_lower_case), None)
        if name is not None and name.lower() == "entry":
            more = {key: by_lower_case[key] for key in (_PROTEIN, _FRAGMENT, _EXISTENCE) if key in by_lower_case}
    elif name not in columns:
        raise Malformed(f'no column "{name}" (--name-column) among its columns: {_listed(columns)}')
    chosen = Chosen(sequences, name, more)
    if (
        not reading.join
        and reading.sequence_column is None
        and sequences[0].lower() != SEQUENCES[-1]
        and reading.header
    ):
        chosen = chosen._replace(noted=sequences[0])
    if ambiguous := [column for column in chosen.all if list(columns).count(column) > 1]:
        raise Malformed(f"two columns have the name {quoted(ambiguous)}: which one is meant? Rename one of them")
    if reading.names_for and not name:
        raise Malformed(
            f"{reading.names_for} needs the names of the proteins, and no column holds them: {_listed(columns)}. Give "
            "--name-column, or omit that option"
        )
    return chosen


def _sequence(columns: Sequence[str], reading: Reading, sample: Sample) -> str:
    if reading.sequence_column is not None:
        if reading.sequence_column in columns:
            return reading.sequence_column
        raise Malformed(
            f'no column "{reading.sequence_column}" (--sequence-column) among its columns: {_listed(columns)}'
            f"{protein_columns(sample())}"
        )
    by_lower_case = {name.lower().strip(): name for name in reversed(columns)}
    if not reading.header and len(columns) == 1:
        return columns[0]
    if known := [by_lower_case[name] for name in SEQUENCES if name in by_lower_case]:
        if len(known) == 1:
            return known[0]
        cells = sample()  # programs may leave columns of AIRR empty
        return next((name for name in known if any(map(bytes.strip, cells.get(name, ())))), known[0])
    raise Malformed(
        f'no column "sequence" among its columns: {_listed(columns)}{protein_columns(sample())}. '
        f"Name the column of the sequences with --sequence-column{_advice(columns)}"
    )


def _advice(columns: Sequence[str]) -> str:
    ends = {name.rsplit("_", 1)[-1] for name in columns if "sequence" in name.lower()}
    if {"heavy", "light"} <= ends:
        return ", or join two chains with --join heavy light"
    if len(columns) == 1 and ";" in columns[0]:
        return '. If ";" separates the columns, give --delimiter ";"'
    if any(len(name) >= 20 and name.isupper() and name.isalpha() for name in columns):
        return ". If the first line holds data, give --no-header"
    return ""


def _chain(columns: Sequence[str], chain: str, sample: Sample) -> str:
    for pattern in _CHAINS:
        if pattern.format(chain) in columns:
            return pattern.format(chain)
    raise Malformed(
        f'no column "{chain}" or "{_CHAINS[1].format(chain)}" (--join) among its columns: {_listed(columns)}'
        f"{protein_columns(sample())}"
    )


def records(cells: Mapping[str, list[bytes]], chosen: Chosen) -> Batch:
    """Return the records of some rows; cells: of each chosen column."""
    columns = [cells[name] for name in chosen.sequences]
    ids = [decoded(cell) for cell in cells[chosen.name]] if chosen.name else None
    names = ids or [""] * len(columns[0])
    if chosen.more:
        more = {field: [decoded(cell) for cell in cells[column]] for field, column in chosen.more.items()}
        names = [_header(name, dict(zip(more, row))) for name, row in zip(names, zip(*more.values()))]
    if len(columns) == 1:
        noted = {f"sequences of the column {chosen.noted}": len(names)} if chosen.noted else {}
        return Batch.of(names, columns[0], ids=ids, named=ids is not None, noted=noted)
    return _joined(names, ids, *columns)


def _header(name: str, more: dict[str, str]) -> str:
    """Return the header that this entry has in UniProt's FASTA, as far as the rules read it."""
    protein, fragment = more.get(_PROTEIN, ""), more.get(_FRAGMENT, "").strip()
    parts = [name, protein]
    if fragment and "(Fragment" not in protein:
        parts.append("(Fragments)" if fragment.lower() == "fragments" else "(Fragment)")
    if level := _LEVELS.get(more.get(_EXISTENCE, "").strip().lower().split(":")[-1].strip()):
        parts.append(f"PE={level}")
    return " ".join(filter(None, parts))


def _joined(names: list[str], ids: list[str] | None, first: list[bytes], second: list[bytes]) -> Batch:
    """Return each pair of chains in both orders; the names of the second order end in "/2"."""
    complete = [bool(a.strip() and b.strip()) for a, b in zip(first, second)]
    pairs = [(a.strip(), b.strip()) for a, b, both in zip(first, second, complete) if both]
    sequences = [joined for a, b in pairs for joined in (a + b"|" + b, b + b"|" + a)]
    left_out = {_EMPTY_CHAIN: len(complete) - len(pairs)} if len(pairs) < len(complete) else {}

    def for_both_orders(names: list[str]) -> list[str]:
        return [one for name, both in zip(names, complete) if both for one in (name, name and f"{name}/2")]

    ids = ids and for_both_orders(ids)
    return Batch.of(for_both_orders(names), sequences, ids=ids, left_out=left_out, named=ids is not None)


def _listed(columns: Sequence[str]) -> str:
    names = [name if len(name) < 40 else f"{name[:40]}…" for name in columns]
    return ", ".join(names[:30]) + (f" and {len(names) - 30:,} more" if len(names) > 30 else "")
