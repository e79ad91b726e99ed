"""Embeddings of proteins: the output of a layer, for every residue and pooled over each protein.

By default the final norm follows, whatever the layer: a pre-norm encoder adds to its residual stream layer after layer,
so that raw outputs have a scale of thousands and a few directions drown the rest (chandar-lab/AMPLIFY issues 13, 24).

Pooled: `mean` and `max` over the residues, without <bos> and <eos>; `bos` is the output at <bos>. `residues` holds a
row for every residue. Of a protein longer than the limit, windows.py says from which window each residue is taken.
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
    """What is wanted of each protein. layer: 0 (embedding) to the number of layers, None: the last."""

    include: tuple[str, ...] = ("mean",)
    layer: int | None = None
    raw: bool = False
    dtype: str = "float32"

    def resolved(self, layers: int) -> Settings:
        """With the number of the layer. Raises AmplifyError for a setting that this model cannot fulfil."""
        for name, found, known in (("include", self.include, KINDS), ("dtype", (self.dtype,), DTYPES)):
            if not found or set(found) - set(known):
                wrong = ", ".join(map(repr, found)) or "none"
                raise AmplifyError(f"{name} must be of {', '.join(known)}, found {wrong}")
        layer = layers if self.layer is None else self.layer
        if not 0 <= layer <= layers:
            raise AmplifyError(f"layer must be 0 (the embedding) to {layers} (the last of this model), found {layer}")
        return replace(self, layer=layer, include=tuple(kind for kind in KINDS if kind in self.include))

    def as_dict(self) -> dict:
        return {**asdict(self), "include": list(self.include)}


def framed(tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([[BOS], tokens, [EOS]]).astype(np.uint8)


def embed_proteins(reader: Reader, proteins: Sequence[Protein], settings: Settings) -> dict[str, np.ndarray]:
    """{kind: array} for each of `settings.include` (resolved): pooled ones [P, H], `residues` [all residues, H].

    Raises AmplifyError where a value does not fit into float16.
    """
    sequences = [framed(protein.tokens) for protein in proteins]
    first = np.cumsum([0, *(len(sequence) - 2 for sequence in sequences)])  # of each protein in `residues`
    pieces = []  # (protein, start, stop, and which of its tokens are taken from there)
    for index, sequence in enumerate(sequences):
        starts, borders, length = windows(len(sequence), reader.max_length)
        pieces += [(index, a, a + length, b, c) for a, b, c in zip(starts, borders, borders[1:])]
    shape = (len(proteins), reader.model.config.hidden_size)
    total = torch.zeros(shape, device=reader.device)
    bos = torch.zeros(shape, device=reader.device)
    largest = torch.full(shape, -torch.inf, device=reader.device)
    layer = reader.layers if settings.layer is None else settings.layer
    residues = np.empty((first[-1], shape[1]), settings.dtype) if "residues" in settings.include else None
    for row in rows([stop - start for _, start, stop, *_ in pieces], reader.row_tokens):
        chosen = [pieces[i] for i in row]
        hidden = reader.hidden([sequences[i][a:b] for i, a, b, *_ in chosen], layer, not settings.raw).float()
        on_host = None if residues is None else hidden.to(getattr(torch, settings.dtype)).cpu().numpy()
        begin = 0
        for index, start, stop, begins, ends in chosen:
            if start == 0:
                bos[index] = hidden[begin]
            kept_from, kept_to = max(begins, 1), min(ends, len(sequences[index]) - 1)  # no <bos>, no <eos>
            if kept_from < kept_to:
                here = slice(begin + kept_from - start, begin + kept_to - start)
                total[index] += hidden[here].sum(0)
                largest[index] = torch.maximum(largest[index], hidden[here].amax(0))
                if residues is not None and on_host is not None:
                    residues[first[index] + kept_from - 1 : first[index] + kept_to - 1] = on_host[here]
            begin += stop - start
    counts = torch.tensor(np.diff(first), device=reader.device)[:, None]
    pooled = {"mean": total / counts, "bos": bos, "max": largest}
    found = {}
    with np.errstate(over="ignore"):  # refused below
        for kind in pooled.keys() & settings.include:
            found[kind] = pooled[kind].cpu().numpy().astype(settings.dtype)
    if residues is not None:
        found["residues"] = residues
    for kind, values in found.items():
        if not np.isfinite(values).all():
            raise AmplifyError(
                f"{kind} embeddings of layer {settings.layer} are not finite in {settings.dtype} (the largest number "
                "of float16 is 65,504): use float32, or the final norm (without raw)"
            )
    return found
