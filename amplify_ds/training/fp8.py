"""training.precision fp8: matrix products of the blocks in 8-bit floats, everything else as with bf16.

NVIDIA's TransformerEngine, which must be installed, multiplies in E4M3 forward and E5M2 backward (Micikevicius et al.
2022, FP8 formats for deep learning). Each tensor is scaled by its own largest value ("current scaling"). No scale is
carried from step to step, so a resumed run uses the same scales as an uninterrupted one.

Parameters, their names and checkpoints are the same as with bf16. Evaluation multiplies in bf16.
"""

from __future__ import annotations

import torch
from torch import nn

from amplify_ds.config import RunConfig
from amplify_ds.errors import AmplifyError
from amplify_ds.model.shape import Shape

MULTIPLE = 16  # TransformerEngine's autocast requires all sizes of a product to be multiples of it
OLDEST = (8, 9)  # compute capability of the first GPUs with FP8 (Ada; Hopper is 9.0)
LAYERS = ("q", "k", "v", "wo", "ffn.w12", "ffn.w3")  # of each block


def check(run: RunConfig, model: Shape, row_tokens: int, device_type: str) -> None:
    """Raise AmplifyError if the precision is fp8 and a setting or this machine does not support it."""
    if run.training.precision != "fp8":
        return
    sizes = {
        "model.hidden_size": model.hidden_size,
        "the SwiGLU width that follows from model.intermediate_size": model.ffn_size,
        "the tokens of a micro batch (training.micro_batch_rows)": run.training.micro_batch_rows * row_tokens,
    }
    for name, size in sizes.items():
        if size % MULTIPLE:
            raise _refusal(f"{name} is {size}, which is not a multiple of {MULTIPLE}; change it")
    for name in ("activation_checkpointing", "compile"):  # both run blocks outside te.autocast
        if getattr(run.training, name):
            raise _refusal(f"training.{name} is not supported together with fp8; set it to false")
    if device_type != "cuda" or torch.cuda.get_device_capability() < OLDEST:
        raise _refusal("this device does not support FP8; use a GPU of the Ada or Hopper generation or newer")
    _transformer_engine()


def replace_linears(model: nn.Module, device: torch.device) -> None:
    """Replace the layers LAYERS of every block of `model` with TransformerEngine's, which keep the same parameters.

    In evaluation mode they multiply in the precision of their weights, not in FP8.
    """
    te, recipes = _transformer_engine()
    recipe = recipes.Float8CurrentScaling(fp8_format=recipes.Format.HYBRID)
    for block in model.get_submodule("transformer_encoder").children():
        for name in LAYERS:
            weight = block.get_parameter(f"{name}.weight")
            out_features, in_features = weight.shape
            layer = te.Linear(in_features, out_features, bias=False, params_dtype=weight.dtype, device=device)
            nn.Module.register_parameter(layer, "weight", weight)  # te's own method would initialise it anew
            parent, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(parent), leaf, layer)
    forward = model.forward

    def in_fp8(*args, **kwargs):
        with te.autocast(enabled=model.training, recipe=recipe):
            return forward(*args, **kwargs)

    model.forward = in_fp8


def _transformer_engine():
    try:
        import transformer_engine.pytorch as te
        from transformer_engine.common import recipe

        _ = te.autocast  # new in 2.9
    except (ImportError, OSError, AttributeError) as error:  # OSError: its libraries are built for another CUDA
        install = "pip install --no-build-isolation 'transformer_engine[pytorch]>=2.9'"
        raise _refusal(f"TransformerEngine 2.9 or newer cannot be used ({error}); install it: {install}") from None
    return te, recipe


def _refusal(problem: str) -> AmplifyError:
    return AmplifyError(f"training.precision fp8: {problem}, or use --training.precision bf16")
