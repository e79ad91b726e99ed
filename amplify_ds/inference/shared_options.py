"""The flags that embed and score share, and what both do before they compute."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amplify_ds import bars
from amplify_ds.prepare import reading_options

INPUT = (
    "proteins: FASTA, CSV, TSV, JSON lines, Parquet, Arrow; plain, compressed, in a zip or tar archive; a folder or "
    "pattern of such files; - for standard input"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER_OR_HUB",
        help="a checkpoint, a run (its newest), a model folder, or a model of the hub (owner/name[@revision])",
    )
    parser.add_argument("--input", required=True, metavar="INPUT", help=INPUT)
    parser.add_argument("--strict", action="store_true", help="refuse letters that are no token (default: <unk>)")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens per window, <bos> and <eos> counted; longer proteins are read in overlapping windows (default: "
        "the model's own limit)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    parser.add_argument(
        "--precision", default="auto", metavar="auto|fp32|bf16", help="auto: bf16 on GPUs, fp32 on CPUs"
    )
    parser.add_argument(
        "--row-tokens",
        type=int,
        default=8192,
        metavar="N",
        help="tokens computed at once (default: 8192); fewer need less memory",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How proteins are read; see prepare/reading_options.py."""
    parser.add_argument(
        "--names",
        default="id",
        metavar="id|header",
        help="of the proteins: the first word of a header, or all of it (default: id)",
    )
    parser.add_argument(
        "--duplicates",
        default="refuse",
        metavar="refuse|skip|number",
        help="what to do with a name that appeared before (default: refuse)",
    )
    reading_options.add_arguments(parser)


def records_from(arguments: argparse.Namespace):
    """The proteins that the arguments name. Raises AmplifyError for arguments that make no sense."""
    from amplify_ds.inference.records import Records

    return Records(arguments.input, reading_options.reading_of(arguments), arguments.names, arguments.duplicates, _tell)


def _tell(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def prepare(arguments: argparse.Namespace, *outputs: Path | None):
    """(reader, records, contents): refuse outputs that exist, check the input, load the model; says what is <unk>."""
    from amplify_ds.inference.resumable import refuse_existing

    for output in filter(None, outputs):
        refuse_existing(output)
    from amplify_ds.inference.model import load
    from amplify_ds.inference.reading import check, describe_unknown

    records = records_from(arguments)
    with bars.bar(unit=" proteins", desc="checking", leave=False) as bar:
        contents = check(records, arguments.strict, bar.update)
    if note := describe_unknown(contents):
        print(f"{records}: {note}", file=sys.stderr)
    reader = load(arguments.model, arguments.device, arguments.precision, arguments.max_length, arguments.row_tokens)
    return reader, records, contents
