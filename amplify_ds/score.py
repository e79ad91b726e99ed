"""Perplexities of proteins and effects of mutations: `python -m amplify_ds.score --model … --input INPUT …`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds import bars
from amplify_ds.errors import AmplifyError, command
from amplify_ds.extras import require
from amplify_ds.inference.shared_options import add_arguments, prepare

DESCRIPTION = """\
Score proteins, or mutations of them, with a masked language model.

Without --mutations: the pseudo-perplexity of every protein, each position masked in turn (n copies of n residues).
--one-pass reads each protein once, unmasked: a quick approximation that has seen the answer, in a column of another
name (one_pass_perplexity), not comparable with pseudo_perplexity.

With --mutations: a CSV or TSV table with a column `mutant` (A23V or p.Ala23Val, several at once A23V:G45D, WT for the
wild type) or `mutated_sequence` and, for an input of several proteins, a column `name`. Substitutions only. Written are
its rows with their effects, log p(new) - log p(wild type), above 0 where the model likes the new residue better:
masked_marginal, or wild_type_marginal with --one-pass. ProteinGym's tables of substitutions are read as they are; where
there is a column DMS_score, its rank correlation (Spearman) with the effects is printed.

--heatmap draws every single mutation of one protein. Interrupted or killed, the same command continues.

  python -m amplify_ds.score --model exported/first --input proteins.fasta --output perplexities.csv
  python -m amplify_ds.score --model exported/first --input protein.fasta --mutations dms.csv --output effects.csv
  python -m amplify_ds.score --model exported/first --input protein.fasta --heatmap map.png
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.score", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="CSV", help="to write; it must not exist")
    parser.add_argument("--one-pass", action="store_true", help="read each protein once, without masks: quick, rougher")
    parser.add_argument("--mutations", type=Path, metavar="TABLE", help="CSV or TSV with a column `mutant`")
    parser.add_argument(
        "--offset",
        type=int,
        default=0,
        metavar="N",
        help="the table's positions are N above those of the input's sequence (default: 0)",
    )
    parser.add_argument("--heatmap", type=Path, metavar="PNG", help="to draw; it must not exist")
    parser.add_argument("--protein", metavar="NAME", help="to draw, where the input holds several")
    arguments = parser.parse_args()
    if (arguments.output is None) == (arguments.heatmap is None) or (arguments.mutations and arguments.heatmap):
        parser.error("give --output (perplexities, or effects with --mutations) or --heatmap, one of the two")
    if arguments.offset and not arguments.mutations:
        parser.error("--offset is that of the positions of --mutations")
    if arguments.protein and not arguments.heatmap:
        parser.error("--protein names the protein that --heatmap draws")

    if arguments.heatmap:
        require("matplotlib", "--heatmap")

    from amplify_ds.inference.mutation_tables import read_table

    table = read_table(arguments.mutations) if arguments.mutations else None
    reader, records, contents = prepare(arguments, arguments.output or arguments.heatmap)
    work = _heatmap if arguments.heatmap else _perplexities if table is None else _effects
    with bars.bar(unit=" positions", unit_scale=True) as bar:
        lines = work(arguments, reader, records, contents, table, bar)
    print("\n".join(lines))
    return 0


def _perplexities(arguments, reader, records, contents, table, bar) -> list[str]:
    import numpy as np

    from amplify_ds.inference.pipelines import score_file

    bar.reset(contents.residues - contents.unknown.total())
    found = score_file(reader, records, contents, arguments.output, arguments.one_pass, bar.update)
    kind = "one-pass perplexity (an approximation)" if arguments.one_pass else "pseudo-perplexity"
    return [
        f"wrote {arguments.output}: {kind} of {contents.proteins:,} proteins, median {np.nanmedian(found):.3f}",
        "next: sort it; the lowest are the proteins that the model finds likeliest",
    ]


def _effects(arguments, reader, records, contents, table, bar) -> list[str]:
    import numpy as np

    from amplify_ds.inference.mutation_tables import NAME
    from amplify_ds.inference.mutations import spearman
    from amplify_ds.inference.pipelines import effects_file
    from amplify_ds.inference.reading import proteins

    named = None if table.column(NAME) is None else set(table.column(NAME))
    wild_types = {p.name: p.tokens for p in proteins(records) if named is None or p.name in named}
    names, effects, wild = effects_file(
        reader, wild_types, contents, table, arguments.output, arguments.one_pass, bar.update, arguments.offset
    )
    method = "wild-type-marginal (one pass)" if arguments.one_pass else "masked-marginal"
    lines = [f"wrote {arguments.output}: {method} effects of {len(effects):,} mutations"]
    if wild.any():
        lines.append(f"note: {wild.sum():,} of them are the wild type: effect 0, not part of a correlation")
    measured = table.measured()
    for name in dict.fromkeys(names) if measured is not None else ():
        used = np.array([n == name for n in names]) & np.isfinite(measured) & ~wild
        correlation = spearman(effects[used], measured[used])
        lines.append(f"{name}: Spearman correlation with DMS_score {correlation:.4f} over {used.sum():,} mutations")
    return [*lines, "next: effects above 0 are those that the model likes better than the wild type"]


def _heatmap(arguments, reader, records, contents, table, bar) -> list[str]:
    from amplify_ds.inference.pipelines import heatmap_file
    from amplify_ds.inference.reading import proteins

    if arguments.protein is None and contents.proteins > 1:
        raise AmplifyError(f"{records}: holds {contents.proteins:,} proteins; name one with --protein")
    protein = next((p for p in proteins(records) if arguments.protein in (None, p.name)), None)
    if protein is None:
        raise AmplifyError(f"{records}: no protein is named {arguments.protein!r}")
    bar.reset(len(protein.tokens))
    heatmap_file(reader, protein, contents, arguments.heatmap, arguments.one_pass, bar.update)
    return [f"wrote {arguments.heatmap}: every single mutation of {protein.name}, {len(protein.tokens):,} positions"]


if __name__ == "__main__":
    command(main)
