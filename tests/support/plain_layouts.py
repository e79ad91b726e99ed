"""The layouts of NVIDIA's two models written independently, for comparison: loops over heads and rows, no helpers.

Written only from the description of the layouts; must not import amplify_ds. Each function takes a float32 state dict
`weights` with the published names and returns a new one.
"""

import torch


def interleaved(q, k, v, heads):
    rows = []
    for head in range(heads):
        for matrix in (q, k, v):
            for row in range(64):
                rows.append(matrix[head * 64 + row])
    return torch.stack(rows)


def five_more_rows(tensor, value):
    new = torch.empty(32, *tensor.shape[1:])
    for row in range(32):
        new[row] = tensor[row] if row < 27 else value
    return new


def to_te(weights, layers, heads):
    lowest = -3.4028234663852886e38  # of float32
    out = {
        "amplify.encoder.weight": five_more_rows(weights["encoder.weight"], 0.0),
        "decoder.layer_norm_weight": weights["layer_norm_2.weight"],
        "decoder.weight": five_more_rows(weights["decoder.weight"], 0.0),
        "decoder.bias": five_more_rows(weights["decoder.bias"], lowest),
    }
    for i in range(layers):
        old, new = f"transformer_encoder.{i}.", f"amplify.transformer_encoder.{i}."
        q, k, v = (weights[f"{old}{x}.weight"] for x in "qkv")
        out[f"{new}self_attention.layernorm_qkv.weight"] = interleaved(q, k, v, heads)
        out[f"{new}self_attention.layernorm_qkv.layer_norm_weight"] = weights[f"{old}attention_norm.weight"]
        out[f"{new}self_attention.proj.weight"] = weights[f"{old}wo.weight"]
        out[f"{new}layernorm_mlp.layer_norm_weight"] = weights[f"{old}ffn_norm.weight"]
        out[f"{new}layernorm_mlp.fc1_weight"] = weights[f"{old}ffn.w12.weight"]
        out[f"{new}layernorm_mlp.fc2_weight"] = weights[f"{old}ffn.w3.weight"]
    return out


def to_megatron(weights, layers, heads):
    out = {
        "embedding.word_embeddings.weight": five_more_rows(weights["encoder.weight"], 0.0),
        "encoder.final_layernorm.weight": weights["layer_norm_2.weight"],
        "output_layer.weight": five_more_rows(weights["decoder.weight"], 0.0),
        "output_layer.bias": five_more_rows(weights["decoder.bias"], 0.0),
    }
    for i in range(layers):
        old, new = f"transformer_encoder.{i}.", f"encoder.layers.{i}."
        q, k, v = (weights[f"{old}{x}.weight"] for x in "qkv")
        out[f"{new}self_attention.linear_qkv.weight"] = interleaved(q, k, v, heads)
        out[f"{new}self_attention.linear_qkv.layer_norm_weight"] = weights[f"{old}attention_norm.weight"]
        out[f"{new}self_attention.linear_proj.weight"] = weights[f"{old}wo.weight"]
        out[f"{new}mlp.linear_fc1.layer_norm_weight"] = weights[f"{old}ffn_norm.weight"]
        out[f"{new}mlp.linear_fc1.weight"] = weights[f"{old}ffn.w12.weight"]
        out[f"{new}mlp.linear_fc2.weight"] = weights[f"{old}ffn.w3.weight"]
    return out


def to_megatron_local(weights, layers, heads):
    out = to_megatron(weights, layers, heads)
    for i in range(layers):
        prefix = f"encoder.layers.{i}."
        out[f"{prefix}input_layernorm.weight"] = out.pop(f"{prefix}self_attention.linear_qkv.layer_norm_weight")
        out[f"{prefix}pre_mlp_layernorm.weight"] = out.pop(f"{prefix}mlp.linear_fc1.layer_norm_weight")
    return out


PLAIN = {
    "hf": lambda weights, layers, heads: weights,
    "te": to_te,
    "megatron": to_megatron,
    "megatron-local": to_megatron_local,
}
