"""Compute logits with a real Megatron-Core model on a CPU: `python megatron_logits.py FOLDER OWN LOGITS`.

Run by test_megatron.py. FOLDER: an exported folder in the layout megatron-local or megatron, loaded strictly. OWN: a
folder created here with the weights of a model of the same shape, initialised by Megatron-Core. LOGITS: a safetensors
file with `ids` [L], to which the logits [L, 32] of both models are added: `theirs` of FOLDER and `own` of OWN.

Norms fused into linear layers exist only with TransformerEngine, on GPUs. For the layout megatron this script renames
them to those of local layers, which amplify_ds never does.
"""

import contextlib
import json
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn

mock.patch.object(torch.cuda, "current_device", lambda: "cpu").start()
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig


class Encoder(nn.Module):
    """Megatron-Core's own modules, under the names of NVIDIA's port."""

    def __init__(self, shape):
        super().__init__()
        config = TransformerConfig(
            num_layers=shape["num_hidden_layers"],
            hidden_size=shape["hidden_size"],
            num_attention_heads=shape["num_attention_heads"],
            ffn_hidden_size=(int(2 * shape["intermediate_size"] / 3) + 7) // 8 * 8,
            add_bias_linear=False,
            gated_linear_unit=True,
            activation_func=nn.functional.silu,
            normalization="RMSNorm",
            layernorm_epsilon=1e-5,
            rotary_interleaved=True,
            apply_rope_fusion=False,
            bias_activation_fusion=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_cpu_initialization=True,
            init_method_std=0.1,
        )
        self.embedding = LanguageModelEmbedding(config, 32, 512, position_embedding_type="rope")
        self.encoder = TransformerBlock(config, spec=get_gpt_layer_local_spec(normalization="RMSNorm"))
        self.output_layer = ColumnParallelLinear(
            shape["hidden_size"], 32, config=config, init_method=config.init_method, bias=True, skip_bias_add=False
        )

    def forward(self, ids):
        """Return logits [L, 32] of ids [L]."""
        length = len(ids)
        pair = torch.arange(0, 64, 2) / 64
        angles = (torch.arange(length)[:, None] * 10_000.0**-pair).repeat_interleave(2, -1)
        hidden = self.encoder(
            self.embedding(ids[None], None),
            attention_mask=torch.zeros(1, 1, length, length, dtype=torch.bool),  # False: attend
            rotary_pos_emb=angles[:, None, None],
        )
        return self.output_layer(hidden)[0][:, 0]

    def weights(self):
        return {name: tensor for name, tensor in self.state_dict().items() if tensor is not None}


def main():
    folder, own, logits_file = map(Path, sys.argv[1:])
    directory = tempfile.mkdtemp()
    distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    megatron_random.get_cuda_rng_tracker().fork = lambda *_: contextlib.nullcontext()
    torch.manual_seed(3)
    shape, logits = json.loads((folder / "config.json").read_text()), load_file(logits_file)
    with torch.no_grad():
        model = Encoder(shape).eval()
        model.output_layer.bias.normal_()  # Megatron-Core initialises it with zeros
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        logits["own"] = model(logits["ids"])
        own.mkdir()
        save_file(model.weights(), own / "model.safetensors")
        tensors = {
            name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight").replace(
                "mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"
            ): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        states = {name: None for name in model.state_dict() if name.endswith("_extra_state")}
        model.load_state_dict({**tensors, **states}, strict=True)
        logits["theirs"] = model(logits["ids"])
    save_file(logits, logits_file)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
