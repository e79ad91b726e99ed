"""The options of build_shards.py and the checks of their values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

from amplify_ds.errors import AmplifyError
from amplify_ds.prepare.clean import LEVELS, MODES, Rules
from amplify_ds.prepare.reading_options import Reading, add_arguments, reading_of
from amplify_ds.processes import check_workers

DESCRIPTION = """\
Turn protein sequences into shards: the directory of packed, memory-mapped rows that
training and evaluation read.

An input (--input, --exclude) is one of
  FILE                      FASTA (A3M too), CSV, TSV and similar text, JSON lines, Parquet,
                            Arrow, Feather; a zip or tar archive of such files
  'PATTERN*.fasta.gz'       all files that match
  FOLDER, FOLDER:START      all such files in a folder, or those whose paths in it begin
                            with START; also a dataset that Hugging Face saved to disk
  OWNER/NAME:FOLDER/SPLIT   a dataset on the Hugging Face hub, streamed, or those of its
                            files whose paths begin with the part after the colon:
                            chandar-lab/UR100P:UniProt/train, :OAS/test, :SCOP/train, …
  -                         standard input, text
  http(s)://…               a text file, read over one connection
Text may be plain or compressed (gzip, zstd, bzip2, xz); the content shows which.

Sequences are cleaned (blanks, lower case and a trailing * are normalised; sequences with
any of B J O U X Z or other characters are dropped), exact duplicates are dropped, and the
rest is shuffled, cut into windows and packed into rows of equal size. Dropped records are
counted by reason. The same sequences, options and seed give the same bytes, whatever
their order, their files and the number of workers. DIR appears only when it is complete;
a complete one is reused. After an interruption, the same command continues from what is
complete in .DIR.partial."""

EXAMPLE = """\
examples: a validation set, then a training set that shares no sequence with it
  python data_prep/build_shards.py --input valid.fasta.gz --output data/valid
  python data_prep/build_shards.py --input uniprot.fasta.gz --exclude valid.fasta.gz --output data/train
  python data_prep/inspect_shards.py data/train --verify
UR100P from the hub, on all machines of a hostfile, which must share a file system (or with
another launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT):
  deepspeed --hostfile hostfile --no_local_rank data_prep/build_shards.py --workers 8 \\
    --input chandar-lab/UR100P:UniProt/train --output data/uniprot"""

LARGEST_ROW = 2**24  # tokens
LONGEST_WINDOW = 2**16 - 1  # window lengths are stored as uint16


@dataclass(frozen=True)
class BuildOptions:
    """The parsed options. settings: what the bytes depend on, for the manifest. outputs: the directory of each part."""

    input: list[str]
    exclude: list[str]
    reading: Reading
    rules: Rules
    settings: dict
    outputs: dict[str, Path]
    workers: int


def parse(arguments: Sequence[str] | None) -> BuildOptions:
    """Return the parsed command line; raise AmplifyError for an invalid value."""
    options = _parser().parse_args(arguments)
    rules = Rules(
        options.ambiguous,
        options.fragments,
        options.max_existence,
        options.shortest,
        options.longest,
        not options.no_normalise,
        options.duplicates,
    )
    names_for = "--fragments drop" if rules.fragments == "drop" else None
    if rules.max_existence < max(LEVELS):
        names_for = f"--max-existence {rules.max_existence}"
    reading = reading_of(options, names_for)
    settings = {
        "max_length": options.max_length,
        "row_tokens": options.row_tokens,
        "windows": options.windows,
        "seed": options.seed,
        "shard_megabytes": options.shard_megabytes,
        "validation_fraction": options.validation_fraction,
        "rules": asdict(rules),
        "reading": reading.changed(),
    }
    _check(settings, options)
    outputs = {"all": options.output.resolve()}
    if options.validation_output:
        outputs = {"train": options.output.resolve(), "validation": options.validation_output.resolve()}
    return BuildOptions(options.input, options.exclude, reading, rules, settings, outputs, options.workers)


def _check(settings: dict, options: argparse.Namespace) -> None:
    """Raise AmplifyError for settings from which no shards can be made."""
    max_length, row_tokens, seed = settings["max_length"], settings["row_tokens"], settings["seed"]
    if not 3 <= max_length <= LONGEST_WINDOW:
        raise AmplifyError(f"--max-length is {max_length}, expected 3 (<bos>, a residue, <eos>) to {LONGEST_WINDOW}.")
    if row_tokens < max_length:
        raise AmplifyError(
            f"--row-tokens is {row_tokens}, less than --max-length, {max_length}: a window would not "
            "fit into a row. Rows fill best at 4 times --max-length or more."
        )
    if row_tokens > LARGEST_ROW:
        raise AmplifyError(f"--row-tokens is {row_tokens}, expected at most {LARGEST_ROW}.")
    if not 0 <= seed < 2**63:
        raise AmplifyError(f"--seed is {seed}, expected 0 to 2^63 - 1.")
    if not 1 <= options.shard_megabytes <= 4000:
        raise AmplifyError(f"--shard-megabytes is {options.shard_megabytes}, expected 1 to 4000.")
    check_workers("--workers", options.workers)
    if not 0 <= options.validation_fraction < 1 or (options.validation_fraction > 0) != bool(options.validation_output):
        raise AmplifyError(
            f"--validation-fraction is {options.validation_fraction} and --validation-output "
            f"{options.validation_output}; expected a fraction between 0 and 1 together with a directory, or neither."
        )
    outputs = [path.resolve() for path in (options.output, options.validation_output) if path]
    if any(one.is_relative_to(other) for one, other in permutations(outputs, 2)):
        raise AmplifyError(
            f"--output {outputs[0]} and --validation-output {outputs[1]} must be two separate directories, neither "
            "inside the other."
        )
    longest = options.shortest if options.longest is None else options.longest
    if not 1 <= options.shortest <= longest < 2**63:
        raise AmplifyError(
            f"--min-residues is {options.shortest} and --max-residues {options.longest}; expected 1 or more, below "
            "2^63, and --max-residues not below --min-residues."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--local_rank", help=argparse.SUPPRESS)  # what the launcher adds without --no_local_rank
    add("--input", nargs="+", required=True, metavar="INPUT", help="where the sequences are, see above")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory to create; must be new, be empty, or hold the same shards",
    )
    add(
        "--exclude",
        nargs="+",
        default=[],
        metavar="INPUT",
        help="sequences to drop from the input if they are identical, such as a validation set (default: none)",
    )
    add(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="put this share of the sequences into --validation-output instead of --output; the choice depends on each "
        "sequence alone, not on the seed or the other sequences (default: %(default)s)",
    )
    add("--validation-output", type=Path, metavar="DIR", help="directory to create for --validation-fraction")

    add_arguments(parser)

    rules = parser.add_argument_group("cleaning")
    rules.add_argument(
        "--ambiguous",
        choices=MODES,
        default="drop",
        help="what to do with sequences that have any of B J O U X Z; if kept, B is a token of its own and the others "
        "become <unk> (default: %(default)s)",
    )
    rules.add_argument(
        "--duplicates", choices=MODES, default="drop", help="what to do with exact duplicates (default: %(default)s)"
    )
    rules.add_argument(
        "--fragments",
        choices=MODES,
        default="keep",
        help='what to do with entries whose name says "(Fragment)" (default: %(default)s)',
    )
    rules.add_argument(
        "--max-existence",
        type=int,
        choices=LEVELS,
        default=max(LEVELS),
        metavar="LEVEL",
        help="drop entries whose name has PE= with a higher number: "
        + ", ".join(f"{level} {name}" for level, name in LEVELS.items())
        + " (default: %(default)s; AMPLIFY's validation proteins have 1 or 2, and are no fragments)",
    )
    rules.add_argument(
        "--min-residues",
        dest="shortest",
        type=int,
        default=1,
        metavar="N",
        help="drop shorter sequences (default: %(default)s)",
    )
    rules.add_argument(
        "--max-residues", dest="longest", type=int, metavar="N", help="drop longer sequences (default: none)"
    )
    rules.add_argument(
        "--no-normalise",
        "--no-mending",  # its name until version 0.1
        action="store_true",
        help="drop sequences with blanks, lower case or a trailing * instead of normalising them",
    )

    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--max-length",
        type=int,
        default=512,
        metavar="TOKENS",
        help="longest window in tokens, <bos> and <eos> counted (default: %(default)s)",
    )
    rows.add_argument(
        "--windows",
        choices=("tile", "random"),
        default="tile",
        help="what to do with longer sequences: cut them into windows of nearly equal length, without loss (tile), or "
        "take one window of --max-length at a random place (random) (default: %(default)s)",
    )
    rows.add_argument(
        "--row-tokens",
        type=int,
        default=8192,
        metavar="TOKENS",
        help="tokens in a row, the unit that training reads; at 4 x --max-length or more, rows are over "
        "99 %% full (default: %(default)s)",
    )
    rows.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the shuffle (default: %(default)s)")

    work = parser.add_argument_group("work")
    work.add_argument("--workers", type=int, default=1, metavar="N", help="number of processes (default: %(default)s)")
    work.add_argument(
        "--shard-megabytes",
        type=int,
        default=200,
        metavar="MB",
        help="approximate size of a shard; a worker needs about 4 times as much memory (default: %(default)s)",
    )
    return parser
