"""Embeddings of proteins: `python -m amplify_ds.embed --model … --input INPUT --output FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds import bars
from amplify_ds.errors import command
from amplify_ds.inference.shared_options import add_arguments, prepare

DESCRIPTION = """\
Write embeddings of proteins: one vector per protein (mean or max over its residues, or the output at <bos>), one vector
per residue, or both. By default they are the outputs of the last layer after the final norm.

The suffix of the output sets the format: .h5, .parquet or .npz. Proteins are packed, so no padding is computed. If the
command is interrupted, run it again to continue: finished chunks are kept in OUTPUT.partial, which takes as much disk
space as the output. A protein longer than the model's limit is read in windows that overlap by half or more; each
residue is taken from the window in which it is farthest from an edge.

  python -m amplify_ds.embed --model exported/first --input proteins.fasta --output embeddings.h5
  python -m amplify_ds.embed --model chandar-lab/AMPLIFY_120M --input proteins.fasta.gz --output residues.h5 \\
    --include mean residues --dtype float16
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.embed", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="file to write: .h5, .parquet or .npz; it must not exist",
    )
    parser.add_argument(
        "--include",
        nargs="+",
        default=["mean"],
        metavar="KIND",
        help="one or more of mean, bos, max (one vector per protein) and residues (one vector per residue) "
        "(default: mean)",
    )
    parser.add_argument("--layer", type=int, metavar="N", help="layer to write, 0 is the embedding (default: the last)")
    parser.add_argument(
        "--raw", action="store_true", help="skip the final norm; raw outputs have a large and uneven scale"
    )
    parser.add_argument(
        "--dtype", default="float32", metavar="float32|float16", help="data type of the output (default: float32)"
    )
    arguments = parser.parse_args()

    from amplify_ds.inference.embeddings import Settings
    from amplify_ds.inference.outputs import check_format
    from amplify_ds.inference.pipelines import embed_file

    check_format(arguments.output)
    reader, records, stats = prepare(arguments, arguments.output)
    settings = Settings(tuple(arguments.include), arguments.layer, arguments.raw, arguments.dtype)
    with bars.bar(total=stats.residues, unit=" residues", unit_scale=True) as bar:
        settings = embed_file(reader, records, stats, arguments.output, settings, bar.update)
    norm = "raw" if settings.raw else "after the final norm"
    print(
        f"wrote {arguments.output}: {', '.join(settings.include)} of {stats.proteins:,} proteins "
        f"({stats.residues:,} residues), layer {settings.layer} of {reader.layers}, {norm}, "
        f"{reader.model.config.hidden_size} dimensions, {settings.dtype}"
    )
    print(f"next: {_how_to_read(arguments.output)}")
    return 0


def _how_to_read(output: Path) -> str:
    return {
        ".h5": f"h5py.File({str(output)!r}): names, lengths, and the arrays above, in input order",
        ".npz": f"numpy.load({str(output)!r}): names, lengths, and the arrays above, in input order",
        ".parquet": f"pyarrow.parquet.read_table({str(output)!r}): one row per protein",
    }[output.suffix]


if __name__ == "__main__":
    command(main)
