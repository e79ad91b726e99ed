"""Perplexities of proteins and effects of mutations: `python -m amplify_ds.score --model … --input INPUT …`."""

from __future__ import annotations

import argparse
from pathlib import Path

from amplify_ds import bars
from amplify_ds.errors import AmplifyError, command
from amplify_ds.extras import require
from amplify_ds.inference.shared_options import add_arguments, prepare

DESCRIPTION = """\
Score proteins, or mutations of proteins, with a masked language model.

Without --mutations, write the pseudo-perplexity of every protein, masking one position at a time (n forward passes for
n residues). --one-pass reads each protein once, unmasked: a fast approximation in which the model sees the residue that
it predicts. It is written to another column (one_pass_perplexity) and is not comparable with pseudo_perplexity.

With --mutations, score the rows of a CSV or TSV table with a column `mutant` (A23V or p.Ala23Val, several as A23V:G45D,
WT for the wild type) or `mutated_sequence` and, if the input has several proteins, a column `name`. Only substitutions
are supported. The output is the table with one more column: the effect log p(new) - log p(wild type), positive where
the model prefers the new residue. The column is masked_marginal, or wild_type_marginal with --one-pass. ProteinGym's
substitution tables work as they are. If the table has a column DMS_score, Spearman's rank correlation with the effects
is printed.

--heatmap plots every single mutation of one protein. If the command is interrupted, run it again to continue.

  python -m amplify_ds.score --model exported/first --input proteins.fasta --output perplexities.csv
  python -m amplify_ds.score --model exported/first --input protein.fasta --mutations dms.csv --output effects.csv
  python -m amplify_ds.score --model exported/first --input protein.fasta --heatmap map.png
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="amplify_ds.score", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="CSV", help="file to write; it must not exist")
    parser.add_argument(
        "--one-pass", action="store_true", help="read each protein once, without masks: faster, less accurate"
    )
    parser.add_argument(
        "--mutations", type=Path, metavar="TABLE", help="CSV or TSV with a column `mutant` or `mutated_sequence`"
    )
    parser.add_argument(
        "--offset",
        type=int,
        default=0,
        metavar="N",
        help="subtract N from the positions in the table to get positions in the input (default: 0)",
    )
    parser.add_argument("--heatmap", type=Path, metavar="PNG", help="heat map to write; it must not exist")
    parser.add_argument("--protein", metavar="NAME", help="protein to plot, if the input has several")
    arguments = parser.parse_args()
    if (arguments.output is None) == (arguments.heatmap is None) or (arguments.mutations and arguments.heatmap):
        parser.error("give either --output (perplexities, or effects with --mutations) or --heatmap")
    if arguments.offset and not arguments.mutations:
        parser.error("--offset needs --mutations")
    if arguments.protein and not arguments.heatmap:
        parser.error("--protein needs --heatmap")

    if arguments.heatmap:
        require("matplotlib", "--heatmap")

    from amplify_ds.inference.mutation_tables import read_table

    table = read_table(arguments.mutations) if arguments.mutations else None
    reader, records, stats = prepare(arguments, arguments.output or arguments.heatmap)
    write = _heatmap if arguments.heatmap else _perplexities if table is None else _effects
    with bars.bar(unit=" positions", unit_scale=True) as bar:
        lines = write(arguments, reader, records, stats, table, bar)
    print("\n".join(lines))
    return 0


def _perplexities(arguments, reader, records, stats, table, bar) -> list[str]:
    import numpy as np

    from amplify_ds.inference.pipelines import score_file

    bar.reset(stats.residues - stats.unknown.total())
    values = score_file(reader, records, stats, arguments.output, arguments.one_pass, bar.update)
    kind = "one-pass perplexity (an approximation)" if arguments.one_pass else "pseudo-perplexity"
    return [
        f"wrote {arguments.output}: {kind} of {stats.proteins:,} proteins, median {np.nanmedian(values):.3f}",
        "next: sort the table; the model finds the proteins with the lowest perplexity likeliest",
    ]


def _effects(arguments, reader, records, stats, table, bar) -> list[str]:
    import numpy as np

    from amplify_ds.inference.mutation_tables import NAME
    from amplify_ds.inference.mutations import spearman
    from amplify_ds.inference.pipelines import effects_file
    from amplify_ds.inference.reading import proteins

    in_table = None if table.column(NAME) is None else set(table.column(NAME))
    wild_types = {p.name: p.tokens for p in proteins(records) if in_table is None or p.name in in_table}
    names, effects, wild = effects_file(
        reader, wild_types, stats, table, arguments.output, arguments.one_pass, bar.update, arguments.offset
    )
    method = "wild-type-marginal (one pass)" if arguments.one_pass else "masked-marginal"
    lines = [f"wrote {arguments.output}: {method} effects of {len(effects):,} mutations"]
    if wild.any():
        lines.append(f"note: {wild.sum():,} rows are the wild type: effect 0, not counted in the correlation")
    measured = table.measured()
    for name in dict.fromkeys(names) if measured is not None else ():
        used = np.array([n == name for n in names]) & np.isfinite(measured) & ~wild
        correlation = spearman(effects[used], measured[used])
        lines.append(f"{name}: Spearman correlation with DMS_score {correlation:.4f} over {used.sum():,} mutations")
    return [*lines, "next: a positive effect means that the model prefers the mutation to the wild type"]


def _heatmap(arguments, reader, records, stats, table, bar) -> list[str]:
    from amplify_ds.inference.pipelines import heatmap_file
    from amplify_ds.inference.reading import proteins

    if arguments.protein is None and stats.proteins > 1:
        raise AmplifyError(f"{records}: contains {stats.proteins:,} proteins; choose one with --protein")
    protein = next((p for p in proteins(records) if arguments.protein in (None, p.name)), None)
    if protein is None:
        raise AmplifyError(f"{records}: no protein is named {arguments.protein!r}")
    bar.reset(len(protein.tokens))
    heatmap_file(reader, protein, stats, arguments.heatmap, arguments.one_pass, bar.update)
    return [f"wrote {arguments.heatmap}: every single mutation of {protein.name}, {len(protein.tokens):,} positions"]


if __name__ == "__main__":
    command(main)
