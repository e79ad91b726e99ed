"""The flags that embed and score share, and what both do before they compute."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="FOLDER_OR_HUB",
        help="a checkpoint, a run (its newest), a model folder, or a model of the hub (owner/name[@revision])",
    )  # fmt: skip
    parser.add_argument("--input", required=True, type=Path, metavar="FASTA", help="proteins; plain, gzip, zstd, xz …")
    parser.add_argument("--strict", action="store_true", help="refuse letters that are no token (default: <unk>)")
    parser.add_argument(
        "--max-length", type=int, metavar="N",
        help="tokens a window, <bos> and <eos> counted; longer proteins are read in overlapping windows (default: the "
        "model's own limit)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU where there is one)")
    parser.add_argument(
        "--precision", default="auto", metavar="auto|fp32|bf16", help="auto: bf16 on GPUs, fp32 on CPUs"
    )
    parser.add_argument(
        "--row-tokens", type=int, default=8192, metavar="N", help="tokens computed at once (default: 8192); fewer need "
        "less memory",
    )  # fmt: skip


def prepare(arguments: argparse.Namespace, *outputs: Path | None):
    """(reader, records, contents): refuse outputs that exist, check the input, load the model; says what is <unk>."""
    from amplify_ds.inference.resumable import refuse_existing

    for output in filter(None, outputs):
        refuse_existing(output)
    from tqdm import tqdm

    from amplify_ds.inference.model import load
    from amplify_ds.inference.reading import Fasta, check, describe_unknown

    records = Fasta(arguments.input)
    with tqdm(unit=" proteins", desc="checking", disable=not sys.stderr.isatty(), leave=False) as bar:
        contents = check(records, arguments.strict, bar.update)
    if note := describe_unknown(contents):
        print(f"{arguments.input}: {note}", file=sys.stderr)
    reader = load(
        arguments.model, arguments.device, arguments.precision, arguments.max_length, arguments.row_tokens
    )  # fmt: skip
    return reader, records, contents
