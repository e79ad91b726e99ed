"""Skip rows from some batch on, without changing anything else in the stream.

A run stores each skip as JSON:

    {"source": name, "row": its number in the shards, "from": index of the first batch without it}

From that batch on, another row of the same source is read in place of this row: the one at the same index of another
order of that source (order.permute), or of the next order if that row is skipped as well. The choice depends on (seed,
source, index) and the skips only: the stream is the same for any number of ranks, and every other row stays where it
was. A replacement gets the mask that its row has in that epoch.

A file for --skip-rows has one object per line, such as {"source": "uniprot", "row": 1234, "step": 800, "loss": 9.1};
only source and row are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from amplify_ds.data.mixture import Mixture, StreamRows
from amplify_ds.data.order import permute
from amplify_ds.errors import AmplifyError
from amplify_ds.structured import parse_json

_REPLACEMENT = 2**33  # in the key of the orders of replacements; no source has this number


class Skips:
    """The skips of a run, indexed by row. Raises AmplifyError if they name a source or row that does not exist."""

    def __init__(self, mixture: Mixture, entries: Iterable[dict]) -> None:
        self._sizes = [source.shards.num_rows for source in mixture.sources]
        self._first: dict[tuple[int, int], int] = {}  # (source, row) -> first batch without it
        for entry in entries:
            key = _find(mixture, entry, "skipped rows")
            self._first[key] = min(entry["from"], self._first.get(key, entry["from"]))
        for number, size in enumerate(self._sizes):
            if sum(source == number for source, _ in self._first) >= size:
                raise AmplifyError(f"skipped rows: all {size} rows of {mixture.names[number]} are skipped.")

    def replace(self, stream: StreamRows, batches: np.ndarray, seed: int) -> StreamRows:
        """Return `stream`, whose rows are read in `batches` (integers [n]), with skipped rows replaced."""
        if not self._first:
            return stream
        rows = stream.rows.copy()
        for i, (source, batch) in enumerate(zip(stream.sources.tolist(), np.asarray(batches).tolist())):
            attempt = 0
            while self._first.get((source, int(rows[i])), batch + 1) <= batch:
                epoch, index = divmod(stream.indices[i], self._sizes[source])
                key = (seed, epoch, source, _REPLACEMENT + attempt)
                rows[i], attempt = permute(np.array([index]), self._sizes[source], key)[0], attempt + 1
        return stream._replace(rows=rows)


def read_skip_rows(file: Path, mixture: Mixture) -> list[dict]:
    """Read a file for --skip-rows; return {"source": name, "row": int} of each line.

    Raises AmplifyError that names an invalid line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AmplifyError(f"{file}: the list of rows to skip cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise AmplifyError(f"{where}: not valid JSON ({error}); {_EXPECTED}") from None
        _find(mixture, entry, where)
        rows.append({"source": entry["source"], "row": entry["row"]})
    return rows


def add_skips(skips: Sequence[dict], rows: Iterable[dict], batch: int) -> list[dict]:
    """Return `skips` extended by those of `rows` that are not among them, skipped from `batch` on."""
    result = list(skips)
    known = {(skip["source"], skip["row"]) for skip in result}
    for row in rows:
        key = row["source"], row["row"]
        if key not in known:
            known.add(key)
            result.append({"source": row["source"], "row": row["row"], "from": batch})
    return result


_EXPECTED = 'expected an object such as {"source": "uniprot", "row": 1234}'


def _find(mixture: Mixture, entry: object, where: str) -> tuple[int, int]:
    """Return (number of the source, row) of an entry. Raises AmplifyError, beginning with `where`, if it is invalid."""
    if not isinstance(entry, dict) or not isinstance(entry.get("source"), str) or type(entry.get("row")) is not int:
        raise AmplifyError(f"{where}: {_EXPECTED}, found {json.dumps(entry):.80}")
    name, row = entry["source"], entry["row"]
    if name not in mixture.names:
        raise AmplifyError(f"{where}: there is no source {name}; this run has {', '.join(mixture.names)}")
    number = mixture.names.index(name)
    size = mixture.sources[number].shards.num_rows
    if not 0 <= row < size:
        raise AmplifyError(f"{where}: {name} has no row {row}; it has rows 0 to {size - 1}")
    return number, row
