"""Which columns of a table hold the sequences and the names."""

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
    """sequences: one column, or two to be joined. name: None where there is none. more: columns of UniProt's tables
    that say what its FASTA headers say, {what: column}. told: the column that a report should name, "" for none."""

    sequences: tuple[str, ...]
    name: str | None
    more: dict[str, str]
    told: str = ""

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.sequences, *filter(None, [self.name]), *self.more.values()]))


Sample = Callable[[], Mapping[str, Sequence[bytes]]]


def choose(found: Sequence[str], reading: Reading, sample: Sample) -> Chosen:
    """Choose among the columns `found`; sample: some cells of each. Raises Malformed for what cannot be chosen."""
    sequences = tuple(_chain(found, chain, sample) for chain in reading.join or ()) or (
        _sequence(found, reading, sample),
    )
    small = {name.lower().strip(): name for name in reversed(found)}
    name, more = reading.name_column, {}
    if name is None:
        name = next((small[known] for known in NAMES if known in small), None) if reading.header else None
        if name is not None and name.lower() == "entry":
            more = {key: small[key] for key in (_PROTEIN, _FRAGMENT, _EXISTENCE) if key in small}
    elif name not in found:
        raise Malformed(f'no column "{name}" (--name-column) among its columns: {_listed(found)}')
    chosen = Chosen(sequences, name, more)
    if (
        not reading.join
        and reading.sequence_column is None
        and sequences[0].lower() != SEQUENCES[-1]
        and reading.header
    ):
        chosen = chosen._replace(told=sequences[0])
    if twice := [column for column in chosen.all if list(found).count(column) > 1]:
        raise Malformed(f"two columns have the name {quoted(twice)}: which one is meant? Rename one of them")
    if reading.names_for and not name:
        raise Malformed(
            f"{reading.names_for} needs the names of the proteins, and no column holds them: {_listed(found)}. Give "
            "--name-column, or leave that option out"
        )
    return chosen


def _sequence(found: Sequence[str], reading: Reading, sample: Sample) -> str:
    if reading.sequence_column is not None:
        if reading.sequence_column in found:
            return reading.sequence_column
        raise Malformed(
            f'no column "{reading.sequence_column}" (--sequence-column) among its columns: {_listed(found)}'
            f"{protein_columns(sample())}"
        )
    small = {name.lower().strip(): name for name in reversed(found)}
    if not reading.header and len(found) == 1:
        return found[0]
    if known := [small[name] for name in SEQUENCES if name in small]:
        if len(known) == 1:
            return known[0]
        cells = sample()  # AIRR has columns that a program may leave empty
        return next((name for name in known if any(map(bytes.strip, cells.get(name, ())))), known[0])
    raise Malformed(
        f'no column "sequence" among its columns: {_listed(found)}{protein_columns(sample())}. '
        f"Name the column of the sequences with --sequence-column{_advice(found)}"
    )


def _advice(found: Sequence[str]) -> str:
    ends = {name.rsplit("_", 1)[-1] for name in found if "sequence" in name.lower()}
    if {"heavy", "light"} <= ends:
        return ", or join two chains with --join heavy light"
    if len(found) == 1 and ";" in found[0]:
        return '. If ";" stands between columns, give --delimiter ";"'
    if any(len(name) >= 20 and name.isupper() and name.isalpha() for name in found):
        return ". If the first line holds data, give --no-header"
    return ""


def _chain(found: Sequence[str], chain: str, sample: Sample) -> str:
    for pattern in _CHAINS:
        if pattern.format(chain) in found:
            return pattern.format(chain)
    raise Malformed(
        f'no column "{chain}" or "{_CHAINS[1].format(chain)}" (--join) among its columns: {_listed(found)}'
        f"{protein_columns(sample())}"
    )


def records(cells: Mapping[str, list[bytes]], chosen: Chosen) -> Batch:
    """The records of some rows; cells: of each chosen column."""
    columns = [cells[name] for name in chosen.sequences]
    ids = [decoded(cell) for cell in cells[chosen.name]] if chosen.name else None
    names = ids or [""] * len(columns[0])
    if chosen.more:
        more = {what: [decoded(cell) for cell in cells[column]] for what, column in chosen.more.items()}
        names = [_header(name, dict(zip(more, row))) for name, row in zip(names, zip(*more.values()))]
    if len(columns) == 1:
        noted = {f"sequences of the column {chosen.told}": len(names)} if chosen.told else {}
        return Batch.of(names, columns[0], ids=ids, named=ids is not None, noted=noted)
    return _joined(names, ids, *columns)


def _header(name: str, more: dict[str, str]) -> str:
    """What the header of this entry in UniProt's FASTA would say."""
    protein, fragment = more.get(_PROTEIN, ""), more.get(_FRAGMENT, "").strip()
    parts = [name, protein]
    if fragment and "(Fragment" not in protein:
        parts.append("(Fragments)" if fragment.lower() == "fragments" else "(Fragment)")
    if level := _LEVELS.get(more.get(_EXISTENCE, "").strip().lower().split(":")[-1].strip()):
        parts.append(f"PE={level}")
    return " ".join(filter(None, parts))


def _joined(names: list[str], ids: list[str] | None, first: list[bytes], second: list[bytes]) -> Batch:
    """Both orders of each pair of chains; the names of the second order end in "/2"."""
    whole = [bool(a.strip() and b.strip()) for a, b in zip(first, second)]
    pairs = [(a.strip(), b.strip()) for a, b, both in zip(first, second, whole) if both]
    sequences = [joined for a, b in pairs for joined in (a + b"|" + b, b + b"|" + a)]
    left_out = {_EMPTY_CHAIN: len(whole) - len(pairs)} if len(pairs) < len(whole) else {}

    def twice(of: list[str]) -> list[str]:
        return [kept for name, both in zip(of, whole) if both for kept in (name, name and f"{name}/2")]

    return Batch.of(twice(names), sequences, ids=ids and twice(ids), left_out=left_out, named=ids is not None)


def _listed(found: Sequence[str]) -> str:
    names = [name if len(name) < 40 else f"{name[:40]}…" for name in found]
    return ", ".join(names[:30]) + (f" and {len(names) - 30:,} more" if len(names) > 30 else "")
