"""Rows that are left out of training from some batch on, without a change to anything else in the stream.

    {"source": name, "row": its number in the shards, "from": index of the first batch without it}

is one of the skips that a run keeps, as JSON. From that batch on, wherever the row's turn comes, another row of the
same source is read: the one at the same place of another order of that source (order.permute), or of the next order
while that row is left out as well. It depends on (seed, source, place) and the skips alone: the stream stays the same
on every number of ranks, and every other row stays where it was. Replacements have masks as if it were their turn.

A list for --skip-rows holds an object a line, as {"source": "uniprot", "row": 1234, "step": 800, "loss": 9.1}; only
source and row count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from amplify_ds.data.mixture import Mixture, Places
from amplify_ds.data.order import permute
from amplify_ds.errors import AmplifyError
from amplify_ds.structured import parse_json

_REPLACEMENT = 2**33  # in a key: orders that are those of no source


class Skips:
    """The skips of a run, made ready to be looked up. AmplifyError if they name what the mixture does not have."""

    def __init__(self, mixture: Mixture, entries: Iterable[dict]) -> None:
        self._sizes = [source.shards.num_rows for source in mixture.sources]
        self._first: dict[tuple[int, int], int] = {}  # (source, row) -> first batch without it
        for entry in entries:
            where = _find(mixture, entry, "skipped rows")
            self._first[where] = min(entry["from"], self._first.get(where, entry["from"]))
        for number, size in enumerate(self._sizes):
            if sum(source == number for source, _ in self._first) >= size:
                raise AmplifyError(f"skipped rows: all {size} rows of {mixture.names[number]} are left out.")

    def replace(self, found: Places, batches: np.ndarray, seed: int) -> Places:
        """Return `found`, what the stream reads in `batches` (integers [n]), with the rows left out replaced."""
        if not self._first:
            return found
        rows = found.rows.copy()
        for i, (source, batch) in enumerate(zip(found.sources.tolist(), np.asarray(batches).tolist())):
            attempt = 0
            while self._first.get((source, int(rows[i])), batch + 1) <= batch:
                epoch, place = divmod(found.places[i], self._sizes[source])
                key = (seed, epoch, source, _REPLACEMENT + attempt)
                rows[i], attempt = permute(np.array([place]), self._sizes[source], key)[0], attempt + 1
        return found._replace(rows=rows)


def read_skip_rows(file: Path, mixture: Mixture) -> list[dict]:
    """Read a list for --skip-rows; return {"source": name, "row": int} of each line. AmplifyError names a bad line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AmplifyError(f"{file}: the list of rows to skip cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise AmplifyError(f"{where}: not valid JSON ({error}); {_EXPECTED}") from None
        _find(mixture, entry, where)
        found.append({"source": entry["source"], "row": entry["row"]})
    return found


def add_skips(skips: Sequence[dict], rows: Iterable[dict], batch: int) -> list[dict]:
    """Return `skips` and those `rows` that are not among them, left out from `batch` on."""
    result = list(skips)
    known = {(skip["source"], skip["row"]) for skip in result}
    for row in rows:
        where = row["source"], row["row"]
        if where not in known:
            known.add(where)
            result.append({"source": row["source"], "row": row["row"], "from": batch})
    return result


_EXPECTED = 'expected an object such as {"source": "uniprot", "row": 1234}'


def _find(mixture: Mixture, entry: object, where: str) -> tuple[int, int]:
    """Return (number of the source, row) of an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("source"), str) or type(entry.get("row")) is not int:
        raise AmplifyError(f"{where}: {_EXPECTED}, found {json.dumps(entry):.80}")
    name, row = entry["source"], entry["row"]
    if name not in mixture.names:
        raise AmplifyError(f"{where}: there is no source {name}; this run has {', '.join(mixture.names)}")
    number = mixture.names.index(name)
    size = mixture.sources[number].shards.num_rows
    if not 0 <= row < size:
        raise AmplifyError(f"{where}: {name} has no row {row}, it has the rows 0 to {size - 1}")
    return number, row
