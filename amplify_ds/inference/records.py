"""Read records (name, sequence) from any input that amplify_ds/prepare reads, or from sequences in memory.

A name is the first word of a FASTA header or the value in the name column of a table. In a table without such a column
it is the number of the row, from 0. To skip or number duplicates, all names are kept in memory.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from glob import has_magic
from pathlib import Path, PurePath

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.batches import Batch
from amplify_ds.prepare.chunks import STANDARD_INPUT
from amplify_ds.prepare.download import Http
from amplify_ds.prepare.readers import read_stream
from amplify_ds.prepare.reading_options import Reading
from amplify_ds.prepare.sources import find_sources

NAMES, DUPLICATES = ("id", "header"), ("refuse", "skip", "number")


class Records:
    """Iterable over the (name, sequence) pairs of an input (a file, pattern, folder …, see prepare/sources.py).

    It can be iterated over several times. names: "id" (the first word of the header) or "header" (all of it).
    duplicates: what to do with duplicate names: "refuse" (see `reading.check`), "skip" all but the first, or "number"
    them. notes: how many records the last iteration left out or changed, by reason.
    """

    def __init__(
        self,
        address: str | Path,
        reading: Reading = Reading(),
        names: str = "id",
        duplicates: str = "refuse",
        on_note: Callable[[str], object] = lambda note: None,
    ) -> None:
        for option, value, known in (("names", names, NAMES), ("duplicates", duplicates, DUPLICATES)):
            if value not in known:
                raise AmplifyError(f"--{option} must be one of {', '.join(known)}, found {value!r}")
        self.address, self.reading, self.names, self.duplicates = str(address), reading, names, duplicates
        self.notes: Counter[str] = Counter()
        self._on_note = on_note
        self._spooled: tempfile._TemporaryFileWrapper | None = None

    def __str__(self) -> str:
        return STANDARD_INPUT if self.address == "-" else self.address

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.notes.clear()
        seen: dict[str, int] = {}
        number = 0
        for batch in self._batches():
            self.notes.update(batch.left_out)
            self.notes.update(batch.noted)
            names = batch.names if self.names == "header" else batch.short_names()
            for given, sequence in zip(names, batch.sequences):
                name = given if batch.named else str(number)
                number += 1
                unique = name if self.duplicates == "refuse" else self._unique(name, seen)
                if unique is not None:
                    yield unique, sequence.decode(errors="replace")

    def _unique(self, name: str, seen: dict[str, int]) -> str | None:
        """Return the name, with a number if it was seen before, or None to skip the record."""
        first, unique = name not in seen, name
        if not first and self.duplicates == "skip":
            self.notes["skipped: the name appeared before"] += 1
            return None
        while unique in seen:
            seen[name] += 1
            unique = f"{name}_{seen[name]}"
        self.notes["numbered: the name appeared before"] += not first
        seen[unique] = 1
        return unique

    def _batches(self) -> Iterator[Batch]:
        if self.address == "-" or self.address.startswith(("http://", "https://")):
            yield from read_stream(self._spool(), str(self), self.reading, lambda read: None)
            return
        if not Path(self.address).exists() and not has_magic(self.address) and ":" not in self.address:
            raise AmplifyError(f"{self.address}: there is no such file or folder; expected proteins")
        on_note, self._on_note = self._on_note, lambda note: None  # the same notes would come with every iteration
        for source in find_sources([self.address], self.reading, on_note):
            yield from source.read()

    def _spool(self) -> str:
        """Copy standard input or a download to a temporary file, so that it can be read again; return its name."""
        if self._spooled is None:
            self._spooled = tempfile.NamedTemporaryFile(suffix=PurePath(self.address).suffix)
            shutil.copyfileobj(sys.stdin.buffer if self.address == "-" else Http(self.address), self._spooled)
            self._spooled.flush()
        return self._spooled.name


class Sequences(list):
    """A list of (name, sequence) pairs."""

    def __str__(self) -> str:
        return "the sequences"


def records_of(sequences: str | Path | Mapping[str, str] | Iterable[str]) -> Records | Sequences:
    """Return the records of a path, of {name: sequence}, or of a list of sequences, which are named 0, 1, …"""
    if isinstance(sequences, (str, Path)):
        return Records(sequences)
    if isinstance(sequences, Mapping):
        return Sequences(sequences.items())
    return Sequences((str(number), sequence) for number, sequence in enumerate(sequences))
