"""How inputs are to be read: the options that all commands share."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from amplify_ds.errors import AmplifyError

QUOTING, ALIGNMENTS = ("auto", "none", "csv"), ("refuse", "strip")


@dataclass(frozen=True)
class Reading:
    """sequence_column, name_column: None for those that are known (columns.py). join: two chains, each a column or what
    its name ends in, read as one sequence in both orders. delimiter: one character, None: tab or comma, by the first
    line. header: whether the first line names the columns; else they are 1, 2, … quoting: "csv" as RFC 4180, "none", or
    "auto": comma as csv, tab as delimited.py says. alignment: "strip" removes the gaps. nucleotides: whether they are
    meant. names_for: the option that needs names, if there is one.
    """

    sequence_column: str | None = None
    name_column: str | None = None
    join: tuple[str, str] | None = None
    delimiter: str | None = None
    header: bool = True
    quoting: str = "auto"
    alignment: str = "refuse"
    nucleotides: bool = False
    names_for: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and not _can_delimit(self.delimiter):
            raise AmplifyError(f'--delimiter is {self.delimiter!r}, expected one ASCII character (or "tab"), no quote.')
        for name, value, known in (("quoting", self.quoting, QUOTING), ("alignment", self.alignment, ALIGNMENTS)):
            if value not in known:
                raise AmplifyError(f"--{name} is {value!r}, expected {' or '.join(known)}.")
        if self.join and self.sequence_column:
            raise AmplifyError("--join names the columns of the sequences; leave out --sequence-column.")

    @property
    def of_tables(self) -> bool:
        """Whether something is asked for that only a table has."""
        return self.delimiter is not None or not self.header

    @property
    def of_columns(self) -> list[str]:
        """The options that were given and mean nothing for FASTA."""
        given = {
            "--sequence-column": self.sequence_column,
            "--name-column": self.name_column,
            "--join": self.join,
            "--delimiter": self.delimiter,
            "--no-header": not self.header,
            "--quoting": self.quoting != "auto",
        }
        return [name for name, value in given.items() if value]

    def unusual(self) -> dict:
        """What differs from the defaults and changes what is read, for a manifest."""
        found = {name: value for name, value in asdict(self).items() if value != getattr(Reading, name)}
        found.pop("names_for", None)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _can_delimit(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text not in '"\r\n\0'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading", "what an input is, is seen from its content")
    add = group.add_argument
    add(
        "--sequence-column",
        metavar="NAME",
        help="of a table (default: sequence_aa or sequence_alignment_aa, else sequence)",
    )
    add("--name-column", metavar="NAME", help="of a table (default: name, sequence_id, Entry, accession or id)")
    add(
        "--join",
        nargs=2,
        metavar="CHAIN",
        help="two columns, or what the names of theirs end in (heavy light), read as one sequence: HEAVY|LIGHT, and "
        "LIGHT|HEAVY as a second one, as in UR100P",
    )
    add("--delimiter", metavar="C", help='between columns; "tab" is one (default: tab or comma, by the first line)')
    add("--no-header", action="store_true", help="a table's first line holds data; its columns are called 1, 2, …")
    add(
        "--quoting",
        choices=QUOTING,
        default="auto",
        help='csv: cells in "" may hold delimiters and line breaks; none: a quote is a letter; auto: csv between '
        "commas; between tabs each line is a row, and a cell wholly in quotes loses them (default: auto)",
    )
    add(
        "--alignment",
        choices=ALIGNMENTS,
        default="refuse",
        help="strip: sequences are aligned, their gaps (- and .) are removed, insertions (small letters) are residues",
    )
    add("--allow-nucleotides", action="store_true", help="do not refuse an input of A C G T U N only")


def reading_of(options: argparse.Namespace, names_for: str | None = None) -> Reading:
    """What the arguments ask for. Raises AmplifyError."""
    delimiter = {"tab": "\t", "\\t": "\t"}.get(options.delimiter, options.delimiter)
    return Reading(
        options.sequence_column,
        options.name_column,
        options.join and tuple(options.join),
        delimiter,
        not options.no_header,
        options.quoting,
        options.alignment,
        options.allow_nucleotides,
        names_for,
    )
