"""Draw a manifest: lengths, residues compared with UniProt's, what became of the records, how full the rows are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amplify_ds.data.shard_writer import writing
from amplify_ds.data.shards import Shards
from amplify_ds.extras import pyplot
from amplify_ds.vocab import BOS, EOS, RESIDUES, encode

PICTURES = (".png", ".pdf", ".svg")
UNIPROT = {
    "A": 8.25, "R": 5.53, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.72, "G": 7.07, "H": 2.27, "I": 5.91,
    "L": 9.65, "K": 5.80, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.64, "T": 5.35, "W": 1.10, "Y": 2.92, "V": 6.86,
}  # a table of twenty numbers  # fmt: skip
"""Residue frequencies of UniProtKB/Swiss-Prot in per cent, from its release statistics."""


def frequencies(manifest: dict) -> dict[str, float]:
    """Return the share of each residue in the shards, in per cent."""
    counts = np.array(manifest["token_counts"])[encode(RESIDUES)]
    return dict(zip(RESIDUES, (100 * counts / counts.sum()).tolist()))


def draw(shards: Shards, file: Path) -> None:
    """Write the picture to `file`; its suffix selects the format."""
    plt = pyplot()
    manifest = shards.manifest
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "savefig.dpi": 150}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
        _lengths(axes[0, 0], manifest)
        _residues(axes[0, 1], manifest)
        _records(axes[1, 0], manifest)
        _tokens(axes[1, 1], manifest)
        figure.suptitle(f"{shards.path.name}: {manifest['counts']['residues']:,} residues")
        with writing(file):
            figure.savefig(file)
        plt.close(figure)


def _lengths(axes, manifest: dict) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    lengths, sequences = np.array(manifest["length_histogram"]).T
    bins = np.geomspace(max(1, lengths.min()), lengths.max() + 1, 60)
    axes.hist(lengths, bins, weights=sequences)
    axes.axvline(manifest["max_length"] - 2, color="black", linewidth=0.8, linestyle="--", label="longest uncut")
    axes.set(xscale="log", xlabel="residues", ylabel="sequences", title="Length")
    axes.xaxis.set_major_locator(LogLocator(10, (1, 3)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)


def _residues(axes, manifest: dict) -> None:
    shares = frequencies(manifest)
    order = sorted(shares, key=lambda residue: shares[residue], reverse=True)
    x = np.arange(len(order))
    axes.bar(x - 0.2, [shares[residue] for residue in order], 0.4, label="these shards")
    axes.bar(x + 0.2, [UNIPROT[residue] for residue in order], 0.4, label="Swiss-Prot", color="lightgrey")
    axes.set(xticks=x, xticklabels=order, ylabel="%", title="Residues")
    axes.legend(frameon=False)


def _records(axes, manifest: dict) -> None:
    counts = manifest["counts"]
    bars = {"kept": counts["sequences"], **counts["rejected"]}
    drawn = axes.barh(list(bars), list(bars.values()), color=["C0", *["C3"] * len(counts["rejected"])])
    axes.bar_label(drawn, [f" {value:,}" for value in bars.values()])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set(xlabel="records", title=f"{counts['records']:,} records read")


def _tokens(axes, manifest: dict) -> None:
    counts, tokens = manifest["counts"], manifest["token_counts"]
    ends = tokens[BOS] + tokens[EOS]
    space = counts["rows"] * manifest["row_tokens"]
    bars = {
        "residues": counts["residues"],
        "<bos>, <eos>": ends,
        "other": counts["tokens"] - counts["residues"] - ends,
        "<pad>": space - counts["tokens"],
    }
    drawn = axes.barh(
        list(bars), [100 * value / space for value in bars.values()], color=["C0", "C1", "C2", "lightgrey"]
    )
    axes.bar_label(drawn, [f" {value / space:.2%}" for value in bars.values()])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="% of the rows' tokens", title=f"Rows: {manifest['packing_efficiency']:.2%} full")
