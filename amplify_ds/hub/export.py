"""Write a model folder in one of the layouts: weights, configuration, tokenizer, card and provenance.

The Hugging Face folder needs torch and transformers, nothing of ours: the files that trained are copied into it. The
other layouts hold weights and configuration for NVIDIA's own model code, which is not ours to copy.
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
from amplify_ds.hub.folder import CONFIG, EXPORTED_FROM, PROVENANCE, Source, read_source, say
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
    """config.json: the published fields, and for `hf` the entry for masked-language modelling that they lack.

    For the padded layouts these are the same fields without the entries that name model code, and `padded_vocab_size`.
    Which further fields NVIDIA's own model classes ask for is not known here; Megatron-Core has no config.json at all.
    """
    from amplify_ds.model.configuration_amplify import AMPLIFYConfig  # and transformers, which nothing else here needs

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
    """Write what `read_source` takes as a folder in `layout`, checked before it gets its name.

    Returns the source and by how much the logits differ (check.py). Raises AmplifyError when `target` exists, `source`
    is no model, or the folder's logits are not the model's.
    """
    if target.exists():
        raise AmplifyError(f"{target}: exists already; choose another folder, or remove it first")
    found, chosen = read_source(source), layouts.LAYOUTS[layout]
    say(found)
    # No dot in this name: transformers before 5 takes dots in a folder's name for those of Python packages.
    partial = target.with_name(f"_{target.name.replace('.', '_')}_partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        tensors = conversion.from_ours(found.weights, found.config, chosen)
        with usual_permissions(partial / checkpoint.WEIGHTS):
            save_file(tensors, partial / checkpoint.WEIGHTS, metadata={"format": "pt"})
        dtype = str(found.weights["encoder.weight"].dtype).removeprefix("torch.")
        config = layout_config(found.config, dtype, chosen.padded)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if layout == "hf":
            for name in CODE:
                shutil.copy(Path(encoder.__file__).with_name(name), partial / name)
        write_tokenizer(partial, found.config.context_length)
        provenance = found.history | {EXPORTED_FROM: [*found.history.get(EXPORTED_FROM, []), found.place()]}
        write_json(partial / PROVENANCE, provenance)
        (partial / "README.md").write_text(model_card(provenance, found.config, layout, amplify_ds.__version__))
        difference = agreement(found.model(), partial, layout)
        if not difference <= TOLERANCE:
            raise AmplifyError(
                f"{target}: not written; the exported model's logits differ by {difference:.1e} of the largest "
                f"(allowed {TOLERANCE:.0e})"
            )
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        why = explain(error) or f"{error}."
        raise AmplifyError(f"{target}: could not be written: {why} Nothing was left behind.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found, difference
