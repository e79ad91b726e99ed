"""How to read inputs: the options that all commands share."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from amplify_ds.errors import AmplifyError

QUOTING, ALIGNMENTS = ("auto", "none", "csv"), ("refuse", "strip")


@dataclass(frozen=True)
class Reading:
    """How to read an input. Raises AmplifyError for an invalid value.

    sequence_column, name_column: None for the known names (columns.py). join: two chains, each a column or the end of
    its name, read as one sequence in both orders. delimiter: one character; None: tab or comma, by the first line.
    header: whether the first line names the columns; if not, they are 1, 2, … quoting: "csv" as in RFC 4180, "none", or
    "auto": csv for commas, for tabs see cells.py. alignment: "strip" removes the gaps. nucleotides: whether these are
    allowed. names_for: the option that needs names, if any.
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
            raise AmplifyError(
                f'--delimiter is {self.delimiter!r}, expected one ASCII character other than a quote, or "tab".'
            )
        for name, value, known in (("quoting", self.quoting, QUOTING), ("alignment", self.alignment, ALIGNMENTS)):
            if value not in known:
                raise AmplifyError(f"--{name} is {value!r}, expected {' or '.join(known)}.")
        if self.join and self.sequence_column:
            raise AmplifyError("--join already names the columns of the sequences; omit --sequence-column.")

    @property
    def is_table(self) -> bool:
        """Whether the options say that the input is a table."""
        return self.delimiter is not None or not self.header

    @property
    def table_options(self) -> list[str]:
        """The options given that have no effect on FASTA."""
        given = {
            "--sequence-column": self.sequence_column,
            "--name-column": self.name_column,
            "--join": self.join,
            "--delimiter": self.delimiter,
            "--no-header": not self.header,
            "--quoting": self.quoting != "auto",
        }
        return [name for name, value in given.items() if value]

    def changed(self) -> dict:
        """Return the options that differ from the defaults and affect what is read, for the manifest."""
        options = {name: value for name, value in asdict(self).items() if value != getattr(Reading, name)}
        options.pop("names_for", None)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _can_delimit(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text not in '"\r\n\0'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reading", "the format of an input is recognised by its content")
    add = group.add_argument
    add(
        "--sequence-column",
        metavar="NAME",
        help="column of a table with the sequences (default: sequence_aa or sequence_alignment_aa, else sequence)",
    )
    add(
        "--name-column",
        metavar="NAME",
        help="column of a table with the names (default: name, sequence_id, Entry, accession or id)",
    )
    add(
        "--join",
        nargs=2,
        metavar="CHAIN",
        help="two columns, or the ends of their names (heavy light), to read as one sequence HEAVY|LIGHT and a second "
        "one LIGHT|HEAVY, as in UR100P",
    )
    add(
        "--delimiter",
        metavar="C",
        help='character between columns, or "tab" (default: tab or comma, by the first line)',
    )
    add("--no-header", action="store_true", help="the first line of a table is data; its columns are called 1, 2, …")
    add(
        "--quoting",
        choices=QUOTING,
        default="auto",
        help='csv: cells in "" may hold delimiters and line breaks; none: a quote is an ordinary character; auto: csv '
        "between commas; between tabs each line is a row, and a cell wholly in quotes loses them (default: auto)",
    )
    add(
        "--alignment",
        choices=ALIGNMENTS,
        default="refuse",
        help="strip: remove the gaps (- and .) of aligned sequences; insertions (lower case) are residues "
        "(default: %(default)s)",
    )
    add("--allow-nucleotides", action="store_true", help="accept an input of A C G T U N only")


def reading_of(options: argparse.Namespace, names_for: str | None = None) -> Reading:
    """Return the reading that the parsed arguments describe. Raises AmplifyError for an invalid value."""
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
