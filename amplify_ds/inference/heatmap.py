"""Plot the effects of all substitutions in a protein as a heat map: position × residue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amplify_ds.extras import pyplot
from amplify_ds.files import replacing
from amplify_ds.vocab import TOKENS, UNK

ORDER = "GAVLIMFWPSTCYNQDEKRH"  # hydrophobic, polar, negative, positive: neighbours are alike
_MAX_PER_LINE = 120  # positions; all lines have the same length
LONGEST = 10_000  # positions: matplotlib draws at most 65,536 pixels in a direction


def effects(tokens: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """Return float32 [20, n]: log p(residue) − log p(wild type), residues as in ORDER; nan at <unk> and `|`."""
    values = log_p[:, [TOKENS.index(residue) for residue in ORDER]].T - log_p[np.arange(len(tokens)), tokens]
    values[:, (tokens == UNK) | (tokens == TOKENS.index("|"))] = np.nan
    return values


def draw(path: Path, name: str, tokens: np.ndarray, log_p: np.ndarray, one_pass: bool) -> None:
    """Write the PNG. log_p: [n, V], see scores.py. Dots mark the wild-type residues."""
    plt = pyplot()
    values = effects(tokens, log_p)
    limit = float(np.nanquantile(np.abs(values), 0.99)) if np.isfinite(values).any() else 1.0
    count = len(tokens)
    lines = -(-count // _MAX_PER_LINE)
    across = -(-count // lines)
    method = "wild-type-marginal, one pass" if one_pass else "masked-marginal"
    with plt.rc_context({"font.size": 9, "savefig.dpi": 150, "text.parse_math": False}):
        size = (1.9 + 0.115 * max(across, 45), 0.9 + 3.0 * lines)
        figure, panels = plt.subplots(lines, 1, figsize=size, squeeze=False, layout="constrained")
        colours = plt.get_cmap("RdBu").with_extremes(bad="0.85")
        for line, axes in enumerate(panels[:, 0]):
            begin = line * across
            part = values[:, begin : begin + across]
            edges = (begin + 0.5, begin + part.shape[1] + 0.5, len(ORDER) - 0.5, -0.5)
            image = axes.imshow(part, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", extent=edges)
            letters = [TOKENS[token] for token in tokens[begin : begin + across]]
            marks = [(begin + i + 1, ORDER.index(x)) for i, x in enumerate(letters) if x in ORDER]
            axes.plot(*zip(*marks) if marks else ([], []), ".", color="black", markersize=2.5)
            axes.set_yticks(range(len(ORDER)), ORDER, fontsize=7, family="monospace")
            axes.set_xticks([i for i in range(begin + 1, begin + part.shape[1] + 1) if i % 10 == 0 or i == 1])
            axes.set_xlim(begin + 0.5, begin + across + 0.5)
            axes.set_ylabel("residue")
        axes.set_xlabel("position (dots: wild type)")
        bar = figure.colorbar(image, ax=panels[:, 0], extend="both", fraction=0.03, pad=0.01)
        bar.set_label("log p(residue) − log p(wild type)")
        figure.suptitle(f"{name}: effects of single mutations ({method})")
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
        plt.close(figure)
