"""Write a model folder in one of the layouts: weights, configuration, tokenizer, card and provenance.

The Hugging Face folder needs only torch and transformers: the model code of this package is copied into it. Folders in
the other layouts have weights and configuration for NVIDIA's model code, which is not included.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

import amplify_ds
from amplify_ds.errors import AmplifyError, explain
from amplify_ds.files import usual_permissions, write_json
from amplify_ds.hub import conversion, layouts
from amplify_ds.hub.card import model_card
from amplify_ds.hub.check import TOLERANCE, agreement
from amplify_ds.hub.folder import CONFIG, EXPORTED_FROM, PROVENANCE, Source, print_notes, read_source
from amplify_ds.hub.tokenizer import write_tokenizer
from amplify_ds.model import encoder
from amplify_ds.model.shape import Shape
from amplify_ds.training import checkpoint

CODE = (
    "modeling_amplify.py",
    "configuration_amplify.py",
    "encoder.py",
    "shape.py",
    "layers.py",
    "inputs.py",
    "loss.py",
    "attention.py",
    "elementwise.py",
)


def layout_config(config: Shape, dtype: str = "float32", padded: bool = False) -> dict[str, Any]:
    """Return the content of config.json: the published fields, and for `hf` an entry for AutoModelForMaskedLM.

    For the padded layouts, the entries that name model code are replaced by `padded_vocab_size`. Which further fields
    NVIDIA's model classes need is not known; Megatron-Core uses no config.json.
    """
    from amplify_ds.model.configuration_amplify import AMPLIFYConfig  # imports transformers, needed only here

    fields = {
        **AMPLIFYConfig(**config.sizes()).to_diff_dict(),
        "_name_": "AMPLIFY",
        "architectures": ["AMPLIFY"],
        "other_special_token_ids": None,
        "vocab_path": "conf/tokenizer/amplify_vocab.txt",
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if padded:
        del fields["architectures"]
        return {**fields, "padded_vocab_size": layouts.PADDED_VOCABULARY}
    fields["auto_map"] = {
        "AutoConfig": "configuration_amplify.AMPLIFYConfig",
        "AutoModel": "modeling_amplify.AMPLIFY",
        "AutoModelForMaskedLM": "modeling_amplify.AMPLIFY",
    }
    return fields


def export(source: str | Path, target: Path, layout: str = "hf") -> tuple[Source, float]:
    """Export `source`, anything that `read_source` accepts, to the folder `target` in `layout`.

    Returns the source and the difference of the logits (check.py). Raises AmplifyError if `target` exists, `source` is
    not a model, or the logits of the folder differ from those of the model; then `target` is not created.
    """
    if target.exists():
        raise AmplifyError(f"{target}: exists already; choose another folder, or remove it first")
    model, rules = read_source(source), layouts.LAYOUTS[layout]
    print_notes(model)
    # No dot in this name: transformers before 5 treats a dot in a folder's name as a separator of Python packages.
    partial = target.with_name(f"_{target.name.replace('.', '_')}_partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        tensors = conversion.from_published(model.weights, model.config, rules)
        with usual_permissions(partial / checkpoint.WEIGHTS):
            save_file(tensors, partial / checkpoint.WEIGHTS, metadata={"format": "pt"})
        dtype = str(model.weights["encoder.weight"].dtype).removeprefix("torch.")
        config = layout_config(model.config, dtype, rules.padded)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if layout == "hf":
            for name in CODE:
                shutil.copy(Path(encoder.__file__).with_name(name), partial / name)
        write_tokenizer(partial, model.config.context_length)
        provenance = model.history | {EXPORTED_FROM: [*model.history.get(EXPORTED_FROM, []), model.location()]}
        write_json(partial / PROVENANCE, provenance)
        (partial / "README.md").write_text(model_card(provenance, model.config, layout, amplify_ds.__version__))
        difference = agreement(model.model(), partial, layout)
        if not difference <= TOLERANCE:
            raise AmplifyError(
                f"{target}: not written; the logits of the exported model differ by {difference:.1e} of the largest "
                f"(allowed {TOLERANCE:.0e})"
            )
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        reason = explain(error) or f"{error}."
        raise AmplifyError(f"{target}: could not be written: {reason} The unfinished folder was removed.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model, difference
