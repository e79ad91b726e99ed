"""Is an exported folder the model that it was made from? Logits of real proteins, read back from the disk.

A wrong table (layouts.py) would undo its own mistake on the way back. So the layouts with q, k and v in one matrix are
computed here as TransformerEngine and Megatron-Core do it, from their own tensors, in plain torch; the Hugging Face
folder is loaded by transformers.
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
# Of exported against own logits, both float32, as a share of the largest logit (or of 1). Rounding alone gave up to
# 1.2e-5 on random weights of the 350M's shape; heads that changed places give about 1.
TOLERANCE = 1e-3


def agreement(model: Encoder, folder: Path, layout: str) -> float:
    """The largest difference of logits between `model`, fed packed proteins, and `folder`, over the largest logit."""
    ids = [torch.tensor(build_tokenizer().encode(sequence).ids) for sequence in SAMPLE]
    lengths = [len(x) for x in ids]
    with torch.no_grad():
        ours = model(
            torch.cat(ids),
            position_ids=torch.cat([torch.arange(n) for n in lengths]),
            cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
            max_seqlen=max(lengths),
        ).logits.split(lengths)
        if layout == "hf":
            theirs = list(transformers_logits(folder))
        else:
            tensors = {name: x.float() for name, x in load_file(folder / "model.safetensors").items()}
            theirs = [
                fused_logits(tensors, LAYOUTS[layout], model.config, x)[:, : model.config.vocab_size] for x in ids
            ]
    largest = max(1.0, *(x.abs().max().item() for x in ours))
    return max((a - b[: len(a)]).abs().max().item() for a, b in zip(ours, theirs)) / largest


def transformers_logits(folder: Path) -> torch.Tensor:
    """[B, L, V] of SAMPLE, by the folder's own code and tokenizer, padded."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loaded = AutoModelForMaskedLM.from_pretrained(folder.resolve(), trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.resolve(), trust_remote_code=True)
    return loaded(**tokenizer(list(SAMPLE), return_tensors="pt", padding=True)).logits


def fused_logits(tensors: dict[str, torch.Tensor], layout: Layout, config, ids: torch.Tensor) -> torch.Tensor:
    """[L, padded vocabulary] of one protein [L], from the tensors of a layout whose q, k and v are one matrix."""

    def tensor(ours, layer=0):
        return tensors[layout.theirs(ours).format(layer)]

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_eps) * weight

    size = config.head_size
    angles = torch.arange(len(ids))[:, None] * ROPE_BASE ** (-torch.arange(0, size, 2) / size)
    cos, sin = (f(angles).repeat_interleave(2, -1)[:, None] for f in (torch.cos, torch.sin))

    def turn(x):
        across = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return (x * cos + across * sin).transpose(0, 1)

    x = tensor("encoder.weight")[ids]
    for i in range(config.num_hidden_layers):
        block = "transformer_encoder.{}."
        qkv = norm(x, tensor(f"{block}attention_norm.weight", i)) @ tensor(f"{block}q.weight", i).T
        query, key, value = qkv.view(len(ids), config.num_attention_heads, 3 * size).split(size, -1)  # [L, N, D] each
        seen = F.scaled_dot_product_attention(turn(query), turn(key), value.transpose(0, 1))
        x = x + seen.transpose(0, 1).flatten(1) @ tensor(f"{block}wo.weight", i).T
        gate, up = (norm(x, tensor(f"{block}ffn_norm.weight", i)) @ tensor(f"{block}ffn.w12.weight", i).T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ tensor(f"{block}ffn.w3.weight", i).T
    return norm(x, tensor("layer_norm_2.weight")) @ tensor("decoder.weight").T + tensor("decoder.bias")
