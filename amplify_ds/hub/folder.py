"""Model folders in the published Hugging Face layout: read one, or a checkpoint; write one.

An exported folder needs torch and transformers, nothing of ours: the file that trained is copied into it. The keys
of the weights are the published ones, so export changes no tensor.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import amplify_ds
from amplify_ds.errors import AmplifyError
from amplify_ds.files import sha256, write_json
from amplify_ds.hub.card import model_card
from amplify_ds.hub.tokenizer import build_tokenizer, write_tokenizer
from amplify_ds.model import modeling_amplify
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.model.modeling_amplify import AMPLIFY
from amplify_ds.training import checkpoint, runs

CODE = ("modeling_amplify.py", "configuration_amplify.py", "attention.py")
SAMPLE = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV", "MALWMRLLPLLALLALWGPDPAAA|FVNQHLC")
PROVENANCE = ("step", "settings", "binding", "precision", "origin", "files")  # of a checkpoint, in an export
TOLERANCE = 1e-5  # of exported against own logits, both float32


def find_checkpoint(path: Path) -> checkpoint.CheckpointFile | None:
    """The checkpoint at `path`, or the newest of the run at `path`; None when it is neither."""
    if (path / checkpoint.STATE).exists() or checkpoint.NAME.fullmatch(path.name):
        return checkpoint.verify(checkpoint.open_checkpoint(path))
    if (path / runs.DESCRIPTION).exists():
        found = checkpoint.newest(path, check=checkpoint.verify)
        if found is None:
            raise AmplifyError(f"{path}: this run has no complete checkpoint yet")
        return found
    return None


def load_model(path: Path) -> AMPLIFY:
    """The model (float32, evaluation mode) of a checkpoint, a run (its newest checkpoint) or a Hugging Face folder.

    Raises AmplifyError when `path` is none of these, or when its tensors are not those of its configuration.
    """
    found = find_checkpoint(path)
    if found is not None:
        config, weights = found.state["model"], found.weights()
    elif (path / "config.json").exists():
        try:
            config, weights = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
        except (OSError, SafetensorError, ValueError) as error:
            raise AmplifyError(f"{path}: cannot be read as a model folder: {error}") from None
        if not isinstance(config, dict) or config.get("model_type") != "AMPLIFY":
            raise AmplifyError(
                f'{path / "config.json"}: is not the configuration of an AMPLIFY model (model_type "AMPLIFY")'
            )
    else:
        raise AmplifyError(
            f"{path}: no checkpoint (state.json), run (run.json) or Hugging Face folder (config.json, "
            "model.safetensors) is here"
        )
    try:
        model = AMPLIFY(AMPLIFYConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    except (ValueError, TypeError) as error:
        raise AmplifyError(f"{path}: {error}") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found_shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if differing := sorted(set(expected.items()) ^ set(found_shapes.items())):
        name = differing[0][0]
        raise AmplifyError(
            f"{path}: the weights are not those of its configuration: {len({n for n, _ in differing})} tensors differ, "
            f"such as {name}: expected {expected.get(name, 'none')}, found {found_shapes.get(name, 'none')}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return model.eval()


def initial_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of what `load_model` takes, and where they come from: what a run that begins with them records."""
    model, found = load_model(path), find_checkpoint(path)
    origin: dict[str, Any] = {"path": str(path.resolve())}
    file = (found.path if found else path) / checkpoint.WEIGHTS
    origin["sha256"] = found.state["files"][file.name] if found else sha256(file)
    if found:
        origin |= {"step": found.step, **{key: found.state[key] for key in ("settings", "binding", "progress", "origin")}}
        origin["progress"] = {key: origin["progress"][key] for key in ("residues", "skipped")}
    return dict(model.named_parameters()), origin


def published_config(config: AMPLIFYConfig) -> dict[str, Any]:
    """config.json with the published fields, and the entry for masked-language modelling that the published one lacks."""
    return {
        **config.to_diff_dict(),
        "_name_": "AMPLIFY",
        "architectures": ["AMPLIFY"],
        "auto_map": {
            "AutoConfig": "configuration_amplify.AMPLIFYConfig",
            "AutoModel": "modeling_amplify.AMPLIFY",
            "AutoModelForMaskedLM": "modeling_amplify.AMPLIFY",
        },
        "other_special_token_ids": None,
        "vocab_path": "conf/tokenizer/amplify_vocab.txt",
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def export(source: Path, target: Path) -> checkpoint.CheckpointFile:
    """Write the checkpoint (or the newest of the run) at `source` as a model folder, checked before it gets its name.

    Raises AmplifyError when `target` exists, `source` is no checkpoint, or the folder's logits are not the model's.
    """
    if target.exists():
        raise AmplifyError(f"{target}: exists already; choose another folder, or remove it first")
    found = find_checkpoint(source)
    if found is None:
        raise AmplifyError(f"{source}: neither a checkpoint nor a run (state.json or run.json is missing)")
    model = load_model(found.path)
    # No dot in this name: transformers before 5 takes dots in a folder's name for those of Python packages.
    partial = target.with_name(f"_{target.name.replace('.', '_')}_partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(model.state_dict(), partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(published_config(model.config), indent=2) + "\n")
        for name in CODE:
            shutil.copy(Path(modeling_amplify.__file__).with_name(name), partial / name)
        write_tokenizer(partial, model.config.context_length)
        (partial / "README.md").write_text(model_card(found.state, amplify_ds.__version__))
        write_json(partial / "provenance.json", {key: found.state[key] for key in PROVENANCE})
        difference = largest_difference(model, partial)
        if not difference <= TOLERANCE:
            raise AmplifyError(
                f"{target}: not written; the exported model's logits differ by {difference:.1e} (allowed {TOLERANCE:.0e})"
            )
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise AmplifyError(f"{target}: could not be written ({error}); nothing was left behind") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def largest_difference(model: AMPLIFY, folder: Path) -> float:
    """Between `model` fed packed proteins and the folder, loaded as a user loads it and fed them padded."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loaded = AutoModelForMaskedLM.from_pretrained(folder.resolve(), trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.resolve(), trust_remote_code=True)
    padded = tokenizer(list(SAMPLE), return_tensors="pt", padding=True)
    ids = [torch.tensor(build_tokenizer().encode(sequence).ids) for sequence in SAMPLE]
    lengths = [len(x) for x in ids]
    with torch.no_grad():
        theirs = loaded(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        ours = model(
            torch.cat(ids),
            position_ids=torch.cat([torch.arange(n) for n in lengths]),
            cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
            max_seqlen=max(lengths),
        ).logits
    pairs = zip(ours.split(lengths), theirs, lengths)
    return max((a - b[:n]).abs().max().item() for a, b, n in pairs)
