"""Plot contacts: the prediction above the diagonal, the known contacts below."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amplify_ds.extras import pyplot
from amplify_ds.files import replacing
from amplify_ds.inference.contacts.targets import MINIMUM_SEPARATION, THRESHOLD, UNKNOWN, Target


def layers(probability: np.ndarray, contacts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (predicted, known), float [n, n], nan where nothing is drawn.

    predicted: above the diagonal, or everywhere if no contacts are known. known: 1 for contact, 0.25 for unknown. Pairs
    closer than MINIMUM_SEPARATION are nan in both.
    """
    i, j = np.indices(probability.shape)
    far = np.abs(i - j) >= MINIMUM_SEPARATION
    if contacts is None:
        return np.where(far, probability, np.nan), np.full(probability.shape, np.nan)
    shades = np.select([contacts == 1, contacts == UNKNOWN], [1.0, 0.25], np.nan)
    return np.where(far & (i < j), probability, np.nan), np.where(far & (i > j), shades, np.nan)


def draw(path: Path, target: Target, probability: np.ndarray) -> None:
    """Write the PNG. probability: [n, n]."""
    plt = pyplot()
    predicted, known = layers(probability, target.contacts)
    count = len(probability)
    edges = (0.5, count + 0.5, count + 0.5, 0.5)
    with plt.rc_context({"font.size": 9, "savefig.dpi": 150, "text.parse_math": False}):
        figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
        image = axes.imshow(predicted, cmap="Blues", vmin=0, vmax=1, extent=edges, interpolation="nearest")
        axes.imshow(known, cmap="Greys", vmin=0, vmax=1, extent=edges, interpolation="nearest")
        axes.plot([0.5, count + 0.5], [0.5, count + 0.5], color="0.6", linewidth=0.6)
        axes.set_xlabel("residue")
        axes.set_ylabel("residue")
        below = f"below: known contacts (C-beta < {THRESHOLD:g} Å), grey: unknown"
        title = f"{target.name}: predicted contacts"
        axes.set_title(title if target.contacts is None else f"{title} (above the diagonal)\n{below}", fontsize=9)
        figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02).set_label("predicted probability of contact")
        with replacing(path) as partial:
            figure.savefig(partial, format="png")
        plt.close(figure)
