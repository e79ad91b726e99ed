"""Masked language models of other families (ESM-2 …), as transformers itself knows them, scored on our windows.

The same proteins, the same masked positions. Each of our tokens becomes the token that the other model's own tokenizer
gives for it, and each window is framed as that tokenizer frames a sequence (<cls> … <eos>), our <bos> and <eos> being
dropped. What is compared:

- Targets are the letters that every compared model has a token for; others (the chain break |, <unk>) are left out for
  all models, and from the baseline.
- A prediction is made among our tokens alone: the softmax runs over those that the other model has. Its further tokens
  (33 in ESM-2) get no share, which can only help it. Our own models keep all of their 27.
- Under the published protocol a tenth of the targets are replaced by random tokens of ours; those that the other model
  lacks stand as its <unk>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from amplify_ds.errors import AmplifyError, first_line
from amplify_ds.hub.folder import CONFIG, PROVENANCE, find_checkpoint, load_model, locate
from amplify_ds.hub.tensors import check_finite, count_tensors, read_json
from amplify_ds.model.shape import Shape
from amplify_ds.training.checkpoint import CheckpointFile
from amplify_ds.vocab import BOS, EOS, TOKENS

Logits = Callable[..., torch.Tensor]  # inputs of PackedBatch.model_inputs -> [M, 27]


@dataclass(frozen=True)
class Scorable:
    """A model to be scored. known: bool [27], the targets that it can name. load: brings its weights to a device."""

    name: str
    step: int | None  # of training, where it is known
    known: np.ndarray
    load: Callable[[torch.device], Logits]


def scorable(source: str) -> Scorable:
    """What `--model` names: anything `read_source` takes, or a model of a family that transformers knows.

    Raises AmplifyError when it is neither, or its tokenizer does not read proteins letter by letter.
    """
    path, _ = locate(source)
    found = find_checkpoint(path)
    config = {} if found else read_json(path / CONFIG) or {}
    if not _is_of_transformers(config.get("model_type")):
        step = found.step if found else (read_json(path / PROVENANCE) or {}).get("step")
        return Scorable(source, step, np.ones(len(TOKENS), bool), lambda device: _own(source, found, device))
    layers = config.get("num_hidden_layers", 0)
    if type(layers) is int and layers > (tensors := count_tensors(path)):  # transformers would build them first
        raise AmplifyError(f"{path / CONFIG}: num_hidden_layers is {layers}, but there are {tensors} tensors")
    return _other(source, path)


def _is_of_transformers(model_type: str | None) -> bool:
    if model_type in (None, Shape.model_type):
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # seconds to import, so only now

    return model_type in CONFIG_MAPPING


def _own(source: str, found: CheckpointFile | None, device: torch.device) -> Logits:
    model = load_model(source, found).to(device)
    return lambda **inputs: model(**inputs).logits


def _other(source: str, path: Path) -> Scorable:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AmplifyError(f"{source}: its tokenizer cannot be loaded ({first_line(error):.200})") from None
    ids, known, before, after = translation(tokenizer, source)

    def load(device: torch.device) -> Logits:
        from transformers import AutoModelForMaskedLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            model, report = AutoModelForMaskedLM.from_pretrained(
                path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise AmplifyError(
                f"{source}: cannot be loaded as a masked language model ({first_line(error):.200})"
            ) from None
        if missing := sorted(name for name in report["missing_keys"] if "position_ids" not in name):
            raise AmplifyError(f"{source}: holds no masked language model; it lacks {', '.join(missing[:8])}")
        check_finite(path, dict(model.named_parameters()))
        return _Framed(
            model.to(device).eval(), ids.to(device), torch.from_numpy(known), before, after, tokenizer.pad_token_id
        )

    return Scorable(source, None, known & (np.array([len(token) == 1 and token.isalpha() for token in TOKENS])), load)


def translation(tokenizer, source: str) -> tuple[torch.Tensor, np.ndarray, list[int], list[int]]:
    """(ids [27] of our tokens in another tokenizer, which of them it knows [27], what it sets before and after).

    Raises AmplifyError when it does not take a protein letter by letter, or has no mask.
    """
    special = {"<pad>": tokenizer.pad_token_id, "<mask>": tokenizer.mask_token_id, "<unk>": tokenizer.unk_token_id}
    special |= dict.fromkeys(("<bos>", "<eos>"), tokenizer.unk_token_id)
    if None in special.values():
        raise AmplifyError(
            f"{source}: its tokenizer lacks <pad>, <unk> or <mask>; it is not scored by masking residues"
        )
    ids = [special[token] if token in special else tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    ids = [tokenizer.unk_token_id if i is None else i for i in ids]
    known = np.array([i != tokenizer.unk_token_id and token not in special for i, token in zip(ids, TOKENS)])
    letters = [token for token, is_known in zip(TOKENS, known) if is_known]
    expected = [i for i, is_known in zip(ids, known) if is_known]
    framed = tokenizer("".join(letters))["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(expected)] == expected), None)
    if not letters or start is None:
        raise AmplifyError(
            f"{source}: its tokenizer does not read proteins letter by letter; such a model is not scored"
        )
    return torch.tensor(ids), known, framed[:start], framed[start + len(expected) :]


class _Framed:
    """Packed inputs -> [M, 27] logits of another model, each window a sequence of its own."""

    def __init__(self, model, ids, known, before, after, padding):
        self.model, self.ids, self.before, self.after, self.padding = model, ids, before, after, padding
        self.unknown = ~known.to(ids.device)

    def __call__(self, input_ids, position_ids, cu_seqlens, max_seqlen, masked_positions):
        ends = cu_seqlens.tolist()
        windows, places = [], []
        for begin, end in zip(ends, ends[1:]):
            inside = masked_positions[(masked_positions >= begin) & (masked_positions < end)]
            if len(inside):
                # A masked place may hold a random <bos>; only what stands at the ends and is no target is a frame.
                begin += int(input_ids[begin] == BOS and begin not in inside)
                end -= int(input_ids[end - 1] == EOS and end - 1 not in inside)
                windows.append(self._frame(self.ids[input_ids[begin:end]]))
                places.append(inside - begin + len(self.before))
        ids = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(window) for window in windows], device=ids.device)
        seen = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = self.model(input_ids=ids, attention_mask=seen.long()).logits
        rows = torch.arange(len(windows), device=ids.device).repeat_interleave(
            torch.tensor([len(x) for x in places], device=ids.device)
        )
        found = logits[rows, torch.cat(places)][:, self.ids]
        return found.masked_fill(self.unknown, -torch.inf)

    def _frame(self, ids):
        return torch.cat([ids.new_tensor(self.before), ids, ids.new_tensor(self.after)])
