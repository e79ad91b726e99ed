"""Records (name, sequence) of an input in any form that amplify_ds/prepare reads, or of sequences in memory.

A name is the first word of a FASTA header, or what a table's column of names says; of a table without one, the number
of the row, from 0. To skip or number duplicates, all names are kept in memory.
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
    """(name, sequence) of each record of an input (a file, a pattern, a folder … see prepare/sources.py, in any form);
    can be iterated over again. names: "id" or "header", all of it. duplicates, of names: "refuse" (see `check`), "skip"
    all but the first, "number" them. notes: of the last time, what was left out or changed."""

    def __init__(
        self,
        address: str | Path,
        reading: Reading = Reading(),
        names: str = "id",
        duplicates: str = "refuse",
        tell: Callable[[str], object] = lambda note: None,
    ) -> None:
        for option, value, known in (("names", names, NAMES), ("duplicates", duplicates, DUPLICATES)):
            if value not in known:
                raise AmplifyError(f"--{option} is {value!r}, expected {', '.join(known)}")
        self.address, self.reading, self.names, self.duplicates = str(address), reading, names, duplicates
        self.notes: Counter[str] = Counter()
        self._tell = tell
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
                told = name if self.duplicates == "refuse" else self._told_apart(name, seen)
                if told is not None:
                    yield told, sequence.decode(errors="replace")

    def _told_apart(self, name: str, seen: dict[str, int]) -> str | None:
        """The name, numbered if it was seen before; None to skip it."""
        first, wanted = name not in seen, name
        if not first and self.duplicates == "skip":
            self.notes["skipped: the name appeared before"] += 1
            return None
        while wanted in seen:
            seen[name] += 1
            wanted = f"{name}_{seen[name]}"
        self.notes["numbered: the name appeared before"] += not first
        seen[wanted] = 1
        return wanted

    def _batches(self) -> Iterator[Batch]:
        if self.address == "-" or self.address.startswith(("http://", "https://")):
            yield from read_stream(self._spool(), str(self), self.reading, lambda read: None)
            return
        if not Path(self.address).exists() and not has_magic(self.address) and ":" not in self.address:
            raise AmplifyError(f"{self.address}: there is no such file or folder; expected proteins")
        tell, self._tell = self._tell, lambda note: None  # once
        for source in find_sources([self.address], self.reading, tell):
            yield from source.read()

    def _spool(self) -> str:
        """What passes once, as a file that is removed with this object: it is read more than once."""
        if self._spooled is None:
            self._spooled = tempfile.NamedTemporaryFile(suffix=PurePath(self.address).suffix)
            shutil.copyfileobj(sys.stdin.buffer if self.address == "-" else Http(self.address), self._spooled)
            self._spooled.flush()
        return self._spooled.name


class Sequences(list):
    """(name, sequence) pairs that are in memory already."""

    def __str__(self) -> str:
        return "the sequences"


def records_of(sequences: str | Path | Mapping[str, str] | Iterable[str]) -> Records | Sequences:
    """A file by its path, {name: sequence}, or plain sequences, which are named 0, 1, …"""
    if isinstance(sequences, (str, Path)):
        return Records(sequences)
    if isinstance(sequences, Mapping):
        return Sequences(sequences.items())
    return Sequences((str(number), sequence) for number, sequence in enumerate(sequences))
