"""Check an exported folder: compare its logits for real proteins with those of the original model.

Converting back would not detect an error in a table (layouts.py), because it applies the same table in reverse. So for
layouts with q, k and v in one matrix, this file computes the logits from the exported tensors in plain torch, as
TransformerEngine and Megatron-Core do; the Hugging Face folder is loaded by transformers.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from amplify_ds.hub.layouts import LAYOUTS, Layout
from amplify_ds.hub.tokenizer import build_tokenizer
from amplify_ds.model.attention import ROPE_BASE
from amplify_ds.model.encoder import Encoder

SAMPLE = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV", "MALWMRLLPLLALLALWGPDPAAA|FVNQHLC")
# Largest difference of exported and original logits, both float32, relative to the largest logit (at least 1). Rounding
# gave up to 1.2e-5 with random weights of the 350M's shape; swapped heads give about 1.
TOLERANCE = 1e-3


def agreement(model: Encoder, folder: Path, layout: str) -> float:
    """Return the largest difference of logits between `model` and `folder`, divided by the largest logit."""
    ids = [torch.tensor(build_tokenizer().encode(sequence).ids) for sequence in SAMPLE]
    lengths = [len(x) for x in ids]
    with torch.no_grad():
        expected = model(
            torch.cat(ids),
            position_ids=torch.cat([torch.arange(n) for n in lengths]),
            cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
            max_seqlen=max(lengths),
        ).logits.split(lengths)
        if layout == "hf":
            exported = list(transformers_logits(folder))
        else:
            tensors = {name: x.float() for name, x in load_file(folder / "model.safetensors").items()}
            exported = [
                fused_logits(tensors, LAYOUTS[layout], model.config, x)[:, : model.config.vocab_size] for x in ids
            ]
    largest = max(1.0, *(x.abs().max().item() for x in expected))
    return max((a - b[: len(a)]).abs().max().item() for a, b in zip(expected, exported)) / largest


def transformers_logits(folder: Path) -> torch.Tensor:
    """Return the padded logits [B, L, V] of SAMPLE, computed with the code and tokenizer in the folder."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loaded = AutoModelForMaskedLM.from_pretrained(folder.resolve(), trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.resolve(), trust_remote_code=True)
    return loaded(**tokenizer(list(SAMPLE), return_tensors="pt", padding=True)).logits


def fused_logits(tensors: dict[str, torch.Tensor], layout: Layout, config, ids: torch.Tensor) -> torch.Tensor:
    """Return logits [L, padded vocabulary] of one protein [L], from tensors of a layout with q, k, v in one matrix."""

    def tensor(published_name, layer=0):
        return tensors[layout.name_of(published_name).format(layer)]

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_eps) * weight

    size = config.head_size
    angles = torch.arange(len(ids))[:, None] * ROPE_BASE ** (-torch.arange(0, size, 2) / size)
    cos, sin = (f(angles).repeat_interleave(2, -1)[:, None] for f in (torch.cos, torch.sin))

    def rotate(x):
        orthogonal = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return (x * cos + orthogonal * sin).transpose(0, 1)

    x = tensor("encoder.weight")[ids]
    for i in range(config.num_hidden_layers):
        block = "transformer_encoder.{}."
        qkv = norm(x, tensor(f"{block}attention_norm.weight", i)) @ tensor(f"{block}q.weight", i).T
        query, key, value = qkv.view(len(ids), config.num_attention_heads, 3 * size).split(size, -1)  # [L, N, D] each
        attended = F.scaled_dot_product_attention(rotate(query), rotate(key), value.transpose(0, 1))
        x = x + attended.transpose(0, 1).flatten(1) @ tensor(f"{block}wo.weight", i).T
        gate, up = (norm(x, tensor(f"{block}ffn_norm.weight", i)) @ tensor(f"{block}ffn.w12.weight", i).T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ tensor(f"{block}ffn.w3.weight", i).T
    return norm(x, tensor("layer_norm_2.weight")) @ tensor("decoder.weight").T + tensor("decoder.bias")
