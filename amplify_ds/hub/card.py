"""The model card (README.md) of an exported model."""

from __future__ import annotations

from typing import Any

import yaml

from amplify_ds.model.shape import Shape

CARD = """\
---
{licence}{library}pipeline_tag: fill-mask
tags: [biology, protein, AMPLIFY, masked-language-modelling]
---

# AMPLIFY, {made} with amplify_ds {version}

An AMPLIFY protein language model (encoder, masked-language modelling): {parts}. {use}

## Training

{training}

## Validation

{validation}

## Configuration

```yaml
{settings}```

## Provenance

{files}
`provenance.json` has the full history.

## Licence

{licence_text}
"""

USE = {
    "hf": """\
In the layout of the published
`chandar-lab/AMPLIFY_*` checkpoints. It needs torch and transformers; `trust_remote_code=True` loads the model code in
this folder.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained("FOLDER", trust_remote_code=True)
output = model(**tokenizer("MKTAYIAKQR", return_tensors="pt"))
output.last_hidden_state   # embeddings [1, length + 2, hidden_size], after the final norm
output.logits              # [1, length + 2, 27]
```""",
    "te": """\
In the layout of NVIDIA's
TransformerEngine model (`nvidia/AMPLIFY_*`), vocabulary padded to 32. The model code is NVIDIA's and not included.""",
    "megatron": """\
In the layout of the
Megatron-Core model of NVIDIA's NeMo port, vocabulary padded to 32: RMSNorm inside the TransformerEngine layers, SwiGLU,
interleaved rotary positions of base 10,000, no biases except in the output layer, untied output.""",
    "megatron-local": """\
In the layout of the
Megatron-Core model of NVIDIA's NeMo port with local layers (no TransformerEngine), vocabulary padded to 32: RMSNorm,
SwiGLU, interleaved rotary positions of base 10,000, no biases except in the output layer, untied output.""",
}
TRAINING = """\
{step:,} optimizer steps of {batch:,} tokens ({tokens:,} in total, including special tokens and padding), {residues:,}
residues read, {precision}. Training data:

| source | weight | fingerprint of the shards |
|---|---|---|
{sources}

{origin}"""
VALIDATION = """\
| set | protocol | step | perplexity | baseline (residue frequencies) |
|---|---|---|---|---|
{scores}

`published` is 80/10/10 masking of 15 % of the residues, so a tenth of the targets is not masked; `mask_only` replaces
every target by `<mask>`. Perplexities of the two protocols are not comparable."""
UNKNOWN = "Unknown: these weights were converted from a model without a record of it. See the card of that model."


def model_card(provenance: dict[str, Any], config: Shape, layout: str, version: str) -> str:
    """Return the text of the card, filled in from the content of provenance.json."""
    trained_here = "settings" in provenance
    licence = (
        "Apache 2.0, as amplify_ds." if trained_here else "The weights keep the licence of the model they come from."
    )
    sizes = {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    settings = {"intermediate_size": config.intermediate_size, "max_length": config.context_length, **sizes}
    return CARD.format(
        licence="license: apache-2.0\n" if trained_here else "",
        library="library_name: transformers\n" if layout == "hf" else "",
        made="pretrained" if trained_here else "converted",
        version=version,
        use=USE[layout],
        parts=f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, 27 tokens",
        training=_training(provenance) if trained_here else UNKNOWN,
        validation=_validation(provenance.get("progress", {}).get("history", [])) if trained_here else UNKNOWN,
        settings=yaml.safe_dump(provenance["settings"] if trained_here else settings, sort_keys=False),
        files="".join(f"- {_location(location)}\n" for location in provenance["exported_from"]),
        licence_text=licence
        + ("" if layout != "hf" or trained_here else " The Python files of this folder: Apache 2.0."),
    )


def _training(provenance: dict[str, Any]) -> str:
    batch = provenance["settings"]["training"]["global_batch_tokens"]
    return TRAINING.format(
        step=provenance["step"],
        batch=batch,
        tokens=provenance["step"] * batch,
        residues=provenance["progress"]["residues"],
        precision=provenance["precision"],
        sources="\n".join(
            f"| {s['name']} | {s['weight']} | `{s['fingerprint']}` |" for s in provenance["binding"]["training data"]
        ),
        origin=_origin(provenance["origin"]),
    ).rstrip()


def _validation(history: list[dict[str, Any]]) -> str:
    newest = {(item["set"], item["protocol"]): item for item in history}
    scores = [
        f"| {item['set']} | {item['protocol']} | {item['step']} | {item['perplexity']:.3f} | "
        f"{item['baseline_perplexity']:.3f} |"
        for item in newest.values()
    ]
    return VALIDATION.format(scores="\n".join(scores) or "| none | | | | |")


def _origin(origin: dict[str, Any] | None) -> str:
    """Return a sentence for the origin of the initial weights, followed by one for each earlier origin."""
    if origin is None:
        return ""
    step = f", step {origin['step']:,} ({origin['progress']['residues']:,} residues)" if "progress" in origin else ""
    return f"It started from the weights of {_location(origin, step)}. " + _origin(origin.get("origin"))


def _location(location: dict[str, Any], step: str = "") -> str:
    commit = f", commit {location['commit']}" if "commit" in location else ""
    digests = location["sha256"] if isinstance(location["sha256"], dict) else {"": location["sha256"]}
    sums = ", ".join(f"{name} sha256 `{digest}`".lstrip() for name, digest in digests.items())
    layout = f", {location['layout']} layout" if "layout" in location else ""
    return f"`{location['path']}`{step}{layout}{commit}, {sums}"
