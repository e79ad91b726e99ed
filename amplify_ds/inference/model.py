"""A model that reads windows of proteins: loaded by folder or hub name, fed without padding.

The weights go into our own model class, so no code of a model folder is ever run. Weights of a hub are downloaded by
huggingface_hub, or taken from its cache without a network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash

from amplify_ds.errors import AmplifyError
from amplify_ds.hub.folder import load_model
from amplify_ds.inference.windows import SHORTEST_LIMIT
from amplify_ds.model.attention import Segments
from amplify_ds.model.modeling_amplify import AMPLIFY, rotary_angles
from amplify_ds.vocab import BOS, EOS, MASK, PAD, TOKENS, UNK

PRECISIONS = ("auto", "fp32", "bf16")
ROW_TOKENS = 8192
_FILES = ["config.json", "model.safetensors", "tokenizer.json"]
_CONVERT = (
    "python -c \"import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in torch.load("
    "'pytorch_model.bin', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\""
)


class Reader:
    """An AMPLIFY on a device, in evaluation mode.

    max_length: tokens a window may have, <bos> and <eos> counted. row_tokens: tokens computed at once; more of them
    are faster on a GPU and need more of its memory.
    """

    def __init__(self, model: AMPLIFY, max_length: int | None = None, row_tokens: int = ROW_TOKENS) -> None:
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
        return self.model.device

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
    name: str | Path | Reader, device: str | None = None, precision: str = "auto", max_length: int | None = None,
    row_tokens: int = ROW_TOKENS, revision: str | None = None,
) -> Reader:  # fmt: skip
    """A checkpoint, a run, a Hugging Face folder or a model of the hub (`owner/name`), ready to read proteins.

    precision auto: bf16 on GPUs, fp32 on CPUs. Raises AmplifyError where there is no such model, where its weights are
    pickled, where its vocabulary is not AMPLIFY's, and for a device that is not there.
    """
    if isinstance(name, Reader):
        if (device, precision, max_length, row_tokens, revision) != (None, "auto", None, ROW_TOKENS, None):
            raise AmplifyError("a model that is loaded keeps its device, precision and lengths: give them to load")
        return name
    if precision not in PRECISIONS:
        raise AmplifyError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
    folder = _find(str(name), revision)
    _refuse_pickle(folder)
    _check_vocabulary(folder)
    model = load_model(folder)
    found = model.config.vocab_size
    special = tuple(getattr(model.config, f"{x}_token_id") for x in ("pad", "unk", "mask", "bos", "eos"))
    if found != len(TOKENS) or special != (PAD, UNK, MASK, BOS, EOS):
        raise AmplifyError(
            f"{name}: has another vocabulary: {found} tokens, <pad> <unk> <mask> <bos> <eos> at {special}; expected "
            f"the {len(TOKENS)} of AMPLIFY, those five at {(PAD, UNK, MASK, BOS, EOS)}"
        )
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = precision == "bf16" or (precision == "auto" and place.type == "cuda")
        model.to(place, torch.bfloat16 if half else torch.float32)
    except (RuntimeError, AssertionError) as error:
        raise AmplifyError(f"device {device}: {str(error).splitlines()[0]}") from None
    return Reader(model, max_length, row_tokens)


def _find(name: str, revision: str | None) -> Path:
    """The folder of that name, or the copy of a model of the hub in the local cache."""
    if Path(name).exists():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise AmplifyError(f"{name}: there is no such folder, and it is no name of the hub (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except HFValidationError as error:
        raise AmplifyError(f"{name}: there is no such folder, and it is no name of the hub: {error}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise AmplifyError(
            f"{name}: there is no such folder, and the model could not be had from the hub ({reason}). Is the name "
            "right, is there a network? Without one, download it elsewhere (hf download "
            f"{name} --local-dir FOLDER) and give the folder"
        ) from None


def _refuse_pickle(folder: Path) -> None:
    pickled = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
    if pickled and (folder / "config.json").exists() and not (folder / "model.safetensors").exists():
        raise AmplifyError(
            f"{folder}: its weights are pickled ({pickled[0]}); reading such a file can run what is in it, so only "
            f"model.safetensors is read. If you trust it, convert it in that folder:\n  {_CONVERT}"
        )


def _check_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer.json that gives one of our tokens another id; one that we cannot read is left alone."""
    try:
        content = json.loads((folder / "tokenizer.json").read_text())
        ids = dict(content["model"]["vocab"]) | {x["content"]: x["id"] for x in content.get("added_tokens", ())}
    except (OSError, ValueError, KeyError, TypeError):
        return
    if moved := [token for index, token in enumerate(TOKENS) if ids.get(token, index) != index]:
        raise AmplifyError(
            f"{folder / 'tokenizer.json'}: has another vocabulary: {moved[0]} is token {ids[moved[0]]}, expected "
            f"{TOKENS.index(moved[0])} as in AMPLIFY"
        )
