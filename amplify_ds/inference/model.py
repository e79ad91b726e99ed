"""A model that reads windows of proteins: loaded by folder or hub name, fed without padding.

The weights go into our own model class, so no code of a model folder is ever run.
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
    """An AMPLIFY on a device, in evaluation mode.

    max_length: tokens a window may have, <bos> and <eos> counted. row_tokens: tokens computed at once; more of them
    are faster on a GPU and need more of its memory.
    """

    def __init__(self, model: Encoder, max_length: int | None = None, row_tokens: int = ROW_TOKENS) -> None:
        self.model = model
        self.max_length = max_length or model.config.context_length
        self.row_tokens = row_tokens
        trained_with = model.config.context_length
        if not SHORTEST_LIMIT <= self.max_length <= trained_with or row_tokens < 1:
            raise AmplifyError(
                f"a window must have {SHORTEST_LIMIT} to {trained_with} tokens (what the model was trained with) and a "
                f"row at least 1, found {self.max_length} and {row_tokens}"
            )

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
        """Of the weights as they are computed with: equal for equal values in equal precision."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def hidden(self, windows: Sequence[np.ndarray], layer: int, norm: bool) -> torch.Tensor:
        """[T, H], on the device: the output of `layer` (0: the embedding) for windows laid end to end, T tokens in all.

        norm: followed by the model's final norm, whatever the layer. Layers above are not computed.
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
    def log_probabilities(self, windows: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
        """float32 [M, V]: log p of each token at `places` [M] of the windows laid end to end."""
        x = self.hidden(windows, self.layers, norm=True)[torch.from_numpy(places).to(self.device)]
        return self.model.decoder(x).float().log_softmax(-1).cpu().numpy()


def load(
    name: str | Path | Reader,
    device: str | None = None,
    precision: str = "auto",
    max_length: int | None = None,
    row_tokens: int = ROW_TOKENS,
) -> Reader:
    """A model, ready to read proteins. name: a checkpoint, run, model folder in any layout or hub name
    (hub/folder.read_source).

    precision auto: bf16 on GPUs, fp32 on CPUs. Raises AmplifyError where there is no such model, where its weights are
    pickled, where its vocabulary is not AMPLIFY's, and for a device that is not there.
    """
    if isinstance(name, Reader):
        if (device, precision, max_length, row_tokens) != (None, "auto", None, ROW_TOKENS):
            raise AmplifyError("a model that is loaded keeps its device, precision and lengths: give them to load")
        return name
    if precision not in PRECISIONS:
        raise AmplifyError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
    model = load_model(name)
    try:
        if device == "meta":
            raise RuntimeError("the meta device computes nothing")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = precision == "bf16" or (precision == "auto" and place.type == "cuda")
        model.to(place, torch.bfloat16 if half else torch.float32)
    except (RuntimeError, AssertionError) as error:
        raise AmplifyError(f"device {device}: {first_line(error)}") from None
    return Reader(model, max_length, row_tokens)
