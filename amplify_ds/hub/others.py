"""Score masked language models of other families supported by transformers (ESM-2 …) on the same windows.

Proteins and masked positions are the same. Each AMPLIFY token is replaced by that of the other model's tokenizer, and
each window is framed as that tokenizer frames a sequence (<cls> … <eos>), after dropping AMPLIFY's <bos> and <eos>. The
comparison follows these rules:

- Targets are the letters for which every compared model has a token; others (the chain break |, <unk>) are left out for
  all models and for the baseline.
- The softmax of the other model runs over the AMPLIFY tokens that it has. Its other tokens (ESM-2 has 33 in total) get
  no probability, which can only help it. AMPLIFY models keep all of their 27.
- Under the published protocol, a tenth of the targets are replaced by random AMPLIFY tokens; those that the other model
  lacks become its <unk>.
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

Logits = Callable[..., torch.Tensor]  # PackedBatch.model_inputs -> [M, 27]


@dataclass(frozen=True)
class Scorable:
    """A model to be scored. known: bool [27], the targets that it has tokens for. load: load it onto a device."""

    name: str
    step: int | None  # of training, if known
    known: np.ndarray
    load: Callable[[torch.device], Logits]


def scorable(source: str) -> Scorable:
    """Return the model that `--model` names: anything that `read_source` accepts, or a model of transformers.

    Raises AmplifyError if it is neither, or if its tokenizer does not split proteins into letters.
    """
    path, _ = locate(source)
    saved = find_checkpoint(path)
    config = {} if saved else read_json(path / CONFIG) or {}
    if not _is_of_transformers(config.get("model_type")):
        step = saved.step if saved else (read_json(path / PROVENANCE) or {}).get("step")
        return Scorable(source, step, np.ones(len(TOKENS), bool), lambda device: _load_amplify(source, saved, device))
    layers = config.get("num_hidden_layers", 0)
    if type(layers) is int and layers > (tensors := count_tensors(path)):  # transformers would build them first
        raise AmplifyError(f"{path / CONFIG}: num_hidden_layers is {layers}, but there are {tensors} tensors")
    return _other_model(source, path)


def _is_of_transformers(model_type: str | None) -> bool:
    if model_type in (None, Shape.model_type):
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # takes seconds to import

    return model_type in CONFIG_MAPPING


def _load_amplify(source: str, saved: CheckpointFile | None, device: torch.device) -> Logits:
    model = load_model(source, saved).to(device)
    return lambda **inputs: model(**inputs).logits


def _other_model(source: str, path: Path) -> Scorable:
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
            raise AmplifyError(f"{source}: is not a masked language model; it lacks {', '.join(missing[:8])}")
        check_finite(path, dict(model.named_parameters()))
        return _Framed(
            model.to(device).eval(), ids.to(device), torch.from_numpy(known), before, after, tokenizer.pad_token_id
        )

    return Scorable(source, None, known & (np.array([len(token) == 1 and token.isalpha() for token in TOKENS])), load)


def translation(tokenizer, source: str) -> tuple[torch.Tensor, np.ndarray, list[int], list[int]]:
    """Return (ids [27] of AMPLIFY's tokens in another tokenizer, whether it has them [27], its prefix, its suffix).

    Raises AmplifyError if it does not split proteins into letters, or has no <mask>.
    """
    special = {"<pad>": tokenizer.pad_token_id, "<mask>": tokenizer.mask_token_id, "<unk>": tokenizer.unk_token_id}
    special |= dict.fromkeys(("<bos>", "<eos>"), tokenizer.unk_token_id)
    if None in special.values():
        raise AmplifyError(
            f"{source}: its tokenizer lacks <pad>, <unk> or <mask>, so it cannot be scored by masking residues"
        )
    ids = [special[token] if token in special else tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    ids = [tokenizer.unk_token_id if i is None else i for i in ids]
    known = np.array([i != tokenizer.unk_token_id and token not in special for i, token in zip(ids, TOKENS)])
    letters = [token for token, is_known in zip(TOKENS, known) if is_known]
    expected = [i for i, is_known in zip(ids, known) if is_known]
    framed = tokenizer("".join(letters))["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(expected)] == expected), None)
    if not letters or start is None:
        raise AmplifyError(f"{source}: its tokenizer does not split proteins into letters, so it cannot be scored")
    return torch.tensor(ids), known, framed[:start], framed[start + len(expected) :]


class _Framed:
    """Packed inputs -> logits [M, 27] of another model, with each window as a separate sequence."""

    def __init__(self, model, ids, known, before, after, padding):
        self.model, self.ids, self.before, self.after, self.padding = model, ids, before, after, padding
        self.unknown = ~known.to(ids.device)

    def __call__(self, input_ids, position_ids, cu_seqlens, max_seqlen, masked_positions):
        ends = cu_seqlens.tolist()
        windows, positions = [], []
        for begin, end in zip(ends, ends[1:]):
            inside = masked_positions[(masked_positions >= begin) & (masked_positions < end)]
            if len(inside):
                # Remove tokens at the ends unless they are targets, which may have become a random <bos>.
                begin += int(input_ids[begin] == BOS and begin not in inside)
                end -= int(input_ids[end - 1] == EOS and end - 1 not in inside)
                windows.append(self._frame(self.ids[input_ids[begin:end]]))
                positions.append(inside - begin + len(self.before))
        ids = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(window) for window in windows], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = self.model(input_ids=ids, attention_mask=mask.long()).logits
        rows = torch.arange(len(windows), device=ids.device).repeat_interleave(
            torch.tensor([len(x) for x in positions], device=ids.device)
        )
        logits = logits[rows, torch.cat(positions)][:, self.ids]
        return logits.masked_fill(self.unknown, -torch.inf)

    def _frame(self, ids):
        return torch.cat([ids.new_tensor(self.before), ids, ids.new_tensor(self.after)])
