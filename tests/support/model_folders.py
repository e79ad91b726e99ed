"""Write model folders with the weights of the independent model, in any layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY

SMALL = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=512)


def reference(shape) -> ReferenceAMPLIFY:
    """Return the independent model with weights so large that each of them affects the logits."""
    torch.manual_seed(0)
    model = ReferenceAMPLIFY(**shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0).add_(0.05 * torch.randn_like(parameter))
    return model


def write(folder: Path, tensors, config=SMALL) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": "AMPLIFY", "max_length": 512, **config}))
    return folder


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], x) and tensors[name].dtype == x.dtype for name, x in expected.items())
