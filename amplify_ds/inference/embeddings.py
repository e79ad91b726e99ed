"""Compute embeddings of proteins: the output of a layer for every residue, or pooled over each protein.

By default the final norm is applied, whatever the layer: a pre-norm encoder adds to its residual stream layer after
layer, so raw outputs have a scale of thousands and a few directions dominate (chandar-lab/AMPLIFY issues 13, 24).

`mean` and `max` pool over the residues, without <bos> and <eos>; `bos` is the output at <bos>. `residues` has one
vector per residue. A protein longer than the limit is read in windows (windows.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.model import Reader
from amplify_ds.inference.reading import Protein
from amplify_ds.inference.windows import rows, windows
from amplify_ds.vocab import BOS, EOS

KINDS = ("mean", "bos", "max", "residues")
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Settings:
    """Which embeddings to compute. layer: 0 (the embedding) to the number of layers; None is the last."""

    include: tuple[str, ...] = ("mean",)
    layer: int | None = None
    raw: bool = False
    dtype: str = "float32"

    def resolved(self, layers: int) -> Settings:
        """Return the settings with an explicit layer, for a model of `layers` layers. Raises AmplifyError if a setting
        is invalid."""
        for name, values, known in (("include", self.include, KINDS), ("dtype", (self.dtype,), DTYPES)):
            if not values or set(values) - set(known):
                given = ", ".join(map(repr, values)) or "none"
                raise AmplifyError(f"{name} must be one of {', '.join(known)}, found {given}")
        layer = layers if self.layer is None else self.layer
        if not 0 <= layer <= layers:
            raise AmplifyError(f"layer must be 0 (the embedding) to {layers} (the last of this model), found {layer}")
        return replace(self, layer=layer, include=tuple(kind for kind in KINDS if kind in self.include))

    def as_dict(self) -> dict:
        return {**asdict(self), "include": list(self.include)}


def framed(tokens: np.ndarray) -> np.ndarray:
    """Return uint8 [n + 2]: the tokens between <bos> and <eos>."""
    return np.concatenate([[BOS], tokens, [EOS]]).astype(np.uint8)


def embed_proteins(reader: Reader, proteins: Sequence[Protein], settings: Settings) -> dict[str, np.ndarray]:
    """Return {kind: array} for each of `settings.include`: pooled ones [P, H], `residues` [all residues, H].

    settings: resolved. Raises AmplifyError if a value is not finite in the requested dtype.
    """
    sequences = [framed(protein.tokens) for protein in proteins]
    first = np.cumsum([0, *(len(sequence) - 2 for sequence in sequences)])  # index of each protein in `residues`
    all_windows = []  # (protein, start, stop, begin and end of the tokens whose result is taken from this window)
    for index, sequence in enumerate(sequences):
        starts, borders, length = windows(len(sequence), reader.max_length)
        all_windows += [(index, a, a + length, b, c) for a, b, c in zip(starts, borders, borders[1:])]
    shape = (len(proteins), reader.model.config.hidden_size)
    total = torch.zeros(shape, device=reader.device)
    bos = torch.zeros(shape, device=reader.device)
    largest = torch.full(shape, -torch.inf, device=reader.device)
    layer = reader.layers if settings.layer is None else settings.layer
    residues = np.empty((first[-1], shape[1]), settings.dtype) if "residues" in settings.include else None
    for row in rows([stop - start for _, start, stop, *_ in all_windows], reader.row_tokens):
        in_row = [all_windows[i] for i in row]
        hidden = reader.hidden([sequences[i][a:b] for i, a, b, *_ in in_row], layer, not settings.raw).float()
        on_host = None if residues is None else hidden.to(getattr(torch, settings.dtype)).cpu().numpy()
        offset = 0  # of the window in the row
        for index, start, stop, begin, end in in_row:
            if start == 0:
                bos[index] = hidden[offset]
            begin, end = max(begin, 1), min(end, len(sequences[index]) - 1)  # without <bos> and <eos>
            if begin < end:
                part = slice(offset + begin - start, offset + end - start)
                total[index] += hidden[part].sum(0)
                largest[index] = torch.maximum(largest[index], hidden[part].amax(0))
                if residues is not None and on_host is not None:
                    residues[first[index] + begin - 1 : first[index] + end - 1] = on_host[part]
            offset += stop - start
    counts = torch.tensor(np.diff(first), device=reader.device)[:, None]
    pooled = {"mean": total / counts, "bos": bos, "max": largest}
    embeddings = {}
    with np.errstate(over="ignore"):  # refused below
        for kind in pooled.keys() & settings.include:
            embeddings[kind] = pooled[kind].cpu().numpy().astype(settings.dtype)
    if residues is not None:
        embeddings["residues"] = residues
    for kind, values in embeddings.items():
        if not np.isfinite(values).all():
            raise AmplifyError(
                f"{kind} embeddings of layer {settings.layer} are not finite in {settings.dtype} (the largest float16 "
                "is 65,504): use float32, or apply the final norm (without raw)"
            )
    return embeddings
