"""Compute the attention maps of a protein, layer by layer, as features for contacts.

The model's fused attention never stores the probabilities, so they are computed here a second time, in float32 and for
one protein at a time, from the projections and the rotation of each block: softmax(q·k / √D) over all tokens. Then the
rows and columns of <bos> and <eos> are removed without rescaling, each map is symmetrised (A + Aᵀ), and the average
product correction subtracts the attention that the two residues get regardless of their partner:

    a_ij - a_i. · a_.j / a_..       (Dunn, Wahl and Gloor 2008, Bioinformatics 24:333)

The order of these steps is that of Rao et al. 2021, "Transformer protein language models are unsupervised structure
learners" (ICLR).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import torch

from amplify_ds.errors import AmplifyError
from amplify_ds.inference.embeddings import framed
from amplify_ds.inference.model import Reader
from amplify_ds.model.attention import Segments, rotary_angles, rotate
from amplify_ds.model.layers import EncoderBlock


def contact_features(reader: Reader, tokens: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield float32 [N, n, n] for each layer: the corrected maps of its N heads, for a protein of n residues.

    tokens: uint8 [n], without <bos> and <eos>. One layer is in memory at a time. Raises AmplifyError if the protein
    does not fit into one window, or if the model is not in float32.
    """
    require_float32(reader)
    if len(tokens) + 2 > reader.max_length:
        raise AmplifyError(
            f"a protein of {len(tokens):,} residues does not fit into the model's {reader.max_length:,} tokens, which "
            "include <bos> and <eos>"
        )
    for attention in attention_maps(reader, framed(tokens)):
        yield average_product_corrected(symmetric(attention[:, 1:-1, 1:-1]))


def require_float32(reader: Reader) -> None:
    if reader.dtype != torch.float32:
        raise AmplifyError(f'contacts need a model in float32, found {reader.dtype}: load it with precision="fp32"')


@torch.inference_mode()
def attention_maps(reader: Reader, window: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield float32 [N, T, T] for each layer: the attention of each token (row) to each (column); rows sum to 1."""
    head_size = reader.model.config.head_size
    ids = torch.from_numpy(window.astype(np.int64)).to(reader.device)
    rotation = rotary_angles(torch.arange(len(ids), device=reader.device), head_size)
    segments = Segments(torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
    x = reader.model.encoder(ids)
    for block in cast(Iterable[EncoderBlock], reader.model.transformer_encoder):
        normed = block.attention_norm(x)
        query, key = (
            rotate(f(normed).unflatten(-1, (-1, head_size)), rotation).float().transpose(0, 1)  # [N, T, D]
            for f in (block.q, block.k)
        )
        yield (query @ key.mT * head_size**-0.5).softmax(-1)
        x = block(x, rotation, segments, None)


def symmetric(maps: torch.Tensor) -> torch.Tensor:
    return maps + maps.mT


def average_product_corrected(maps: torch.Tensor) -> torch.Tensor:
    """Return the corrected maps [N, n, n]. maps: symmetric. A map of zeros (all attention on <bos> and <eos>) stays
    zero."""
    sums = maps.sum(-1, keepdim=True)
    total = sums.sum(-2, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return maps - sums * sums.mT / total  # this order makes the result exactly symmetric
