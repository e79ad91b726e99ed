"""The flags that embed, score and contacts share, and the checks that embed and score do before computing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amplify_ds import bars
from amplify_ds.prepare import reading_options

INPUT = (
    "proteins: FASTA, CSV, TSV, JSON lines, Parquet or Arrow; plain, compressed, or in a zip or tar archive; a folder "
    "or pattern of such files; - for standard input"
)


STRICT = "refuse letters that are no token (default: read them as <unk>)"
DEVICE = "cpu, cuda, cuda:1 … (default: a GPU if available)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER_OR_HUB",
        help="a checkpoint, a run (its newest checkpoint), a model folder, or a model on the hub "
        "(owner/name[@revision])",
    )
    parser.add_argument("--input", required=True, metavar="INPUT", help=INPUT)
    parser.add_argument("--strict", action="store_true", help=STRICT)
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens per window, including <bos> and <eos>; longer proteins are read in overlapping windows (default: "
        "the model's limit)",
    )
    parser.add_argument("--device", help=DEVICE)
    parser.add_argument(
        "--precision", default="auto", metavar="auto|fp32|bf16", help="auto: bf16 on GPUs, fp32 on CPUs"
    )
    parser.add_argument(
        "--row-tokens",
        type=int,
        default=8192,
        metavar="N",
        help="tokens per forward pass (default: 8192); a smaller value needs less memory",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the flags for names and duplicates, and those of prepare/reading_options.py."""
    parser.add_argument(
        "--names",
        default="id",
        metavar="id|header",
        help="protein names: the first word of the header, or the whole header (default: id)",
    )
    parser.add_argument(
        "--duplicates",
        default="refuse",
        metavar="refuse|skip|number",
        help="what to do if a name appears again (default: refuse)",
    )
    reading_options.add_arguments(parser)


def records_from(arguments: argparse.Namespace):
    """Return the Records of --input. Raises AmplifyError for invalid arguments."""
    from amplify_ds.inference.records import Records

    reading = reading_options.reading_of(arguments)
    return Records(arguments.input, reading, arguments.names, arguments.duplicates, _print_note)


def _print_note(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def prepare(arguments: argparse.Namespace, *outputs: Path | None):
    """Refuse existing outputs, check the input and load the model. Return (reader, records, stats).

    Prints how many characters are read as <unk>, and how many records were left out or changed.
    """
    from amplify_ds.inference.resumable import refuse_existing

    for output in filter(None, outputs):
        refuse_existing(output)
    from amplify_ds.inference.model import load
    from amplify_ds.inference.reading import check, describe_unknown

    records = records_from(arguments)
    with bars.bar(unit=" proteins", desc="checking", leave=False) as bar:
        stats = check(records, arguments.strict, bar.update)
    if note := describe_unknown(stats):
        print(f"{records}: {note}", file=sys.stderr)
    reader = load(arguments.model, arguments.device, arguments.precision, arguments.max_length, arguments.row_tokens)
    return reader, records, stats
