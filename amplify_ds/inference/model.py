"""Load a model from a folder or the hub, and run it on windows of proteins without padding.

The weights are loaded into this package's model class, so no code from a model folder is executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash

from amplify_ds.errors import AmplifyError, first_line
from amplify_ds.hub.folder import load_model
from amplify_ds.inference.windows import SHORTEST_LIMIT
from amplify_ds.model.attention import Segments, rotary_angles
from amplify_ds.model.encoder import Encoder

PRECISIONS = ("auto", "fp32", "bf16")
ROW_TOKENS = 8192


class Reader:
    """An AMPLIFY model on a device, in evaluation mode.

    max_length: tokens per window, including <bos> and <eos>. row_tokens: tokens per forward pass; a larger value is
    faster on a GPU and needs more memory.
    """

    def __init__(self, model: Encoder, max_length: int | None = None, row_tokens: int = ROW_TOKENS) -> None:
        self.model = model
        self.max_length = max_length or model.config.context_length
        self.row_tokens = row_tokens
        longest = model.config.context_length
        if not SHORTEST_LIMIT <= self.max_length <= longest:
            raise AmplifyError(
                f"max_length must be {SHORTEST_LIMIT} to {longest} tokens (the model's context length), found "
                f"{self.max_length}"
            )
        if row_tokens < 1:
            raise AmplifyError(f"row_tokens must be at least 1, found {row_tokens}")

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def device(self) -> torch.device:
        return self.model.encoder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.encoder.weight.dtype

    def fingerprint(self) -> str:
        """Return a hash of the weights as loaded; it depends on their values and the precision."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def hidden(self, windows: Sequence[np.ndarray], layer: int, norm: bool) -> torch.Tensor:
        """Return [T, H] on the device: the output of `layer` (0: the embedding) for concatenated windows of T tokens.

        norm: apply the model's final norm, whatever the layer. Layers above `layer` are not computed.
        """
        lengths = [len(window) for window in windows]
        ids = torch.from_numpy(np.concatenate(windows).astype(np.int64)).to(self.device)
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(self.device)
        segments = Segments(torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32), max(lengths))
        rotation = rotary_angles(positions, self.model.config.head_size)
        x = self.model.encoder(ids)
        for block in self.model.transformer_encoder[:layer]:
            x = block(x, rotation, segments, None)
        return self.model.layer_norm_2(x) if norm else x

    @torch.inference_mode()
    def log_probabilities(self, windows: Sequence[np.ndarray], indices: np.ndarray) -> np.ndarray:
        """Return float32 [M, V]: log p of each token at `indices` [M] into the concatenated windows."""
        x = self.hidden(windows, self.layers, norm=True)[torch.from_numpy(indices).to(self.device)]
        return self.model.decoder(x).float().log_softmax(-1).cpu().numpy()


def load(
    name: str | Path | Reader,
    device: str | None = None,
    precision: str = "auto",
    max_length: int | None = None,
    row_tokens: int = ROW_TOKENS,
) -> Reader:
    """Load a model and return it ready to read proteins.

    name: a checkpoint, run, model folder in any layout, or hub name (see `read_source` in hub/folder.py). precision:
    "fp32", "bf16", or "auto" (bf16 on GPUs, fp32 on CPUs). max_length and row_tokens: see `Reader`. Raises AmplifyError
    if there is no such model, if its weights are pickled, if its vocabulary is not AMPLIFY's, or if the device is not
    available.
    """
    if isinstance(name, Reader):
        if (device, precision, max_length, row_tokens) != (None, "auto", None, ROW_TOKENS):
            raise AmplifyError(
                "the model is already loaded: give device, precision, max_length and row_tokens to amplify_ds.load"
            )
        return name
    if precision not in PRECISIONS:
        raise AmplifyError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
    model = load_model(name)
    try:
        if device == "meta":
            raise RuntimeError("the meta device computes nothing")
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = precision == "bf16" or (precision == "auto" and target.type == "cuda")
        model.to(target, torch.bfloat16 if half else torch.float32)
    except (RuntimeError, AssertionError) as error:
        raise AmplifyError(f"device {device}: {first_line(error)}") from None
    return Reader(model, max_length, row_tokens)
