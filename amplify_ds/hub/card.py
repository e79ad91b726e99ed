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

{places}
`provenance.json` has the whole story.

## Licence

{licence_text}
"""

USE = {
    "hf": """\
In the layout of the published
`chandar-lab/AMPLIFY_*` checkpoints. It needs torch and transformers; `trust_remote_code=True` loads the model file of
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
TransformerEngine model (`nvidia/AMPLIFY_*`), vocabulary padded to 32. The model code is NVIDIA's, and not in this
folder.""",
    "megatron": """\
In the layout of the
Megatron-Core model of NVIDIA's NeMo port, vocabulary padded to 32: RMSNorm inside the TransformerEngine layers, SwiGLU,
interleaved rotary positions of base 10,000, no biases but the output layer's, untied output.""",
    "megatron-local": """\
In the layout of the
Megatron-Core model of NVIDIA's NeMo port with local layers (no TransformerEngine), vocabulary padded to 32: RMSNorm,
SwiGLU, interleaved rotary positions of base 10,000, no biases but the output layer's, untied output.""",
}
TRAINING = """\
{step:,} optimizer steps of {batch:,} tokens ({tokens:,} in all, special tokens and padding included), {residues:,}
residues read, {precision}. Training data:

| source | weight | fingerprint of the shards |
|---|---|---|
{sources}

{origin}"""
VALIDATION = """\
| set | protocol | step | perplexity | residue frequencies alone |
|---|---|---|---|---|
{scores}

`published` is 80/10/10 masking of 15 % of the residues, a tenth of the targets standing unmasked; `mask_only` replaces
every target by `<mask>`. The two are not comparable with each other."""
UNKNOWN = "Not known: these weights were converted from a model that does not say. See the card of that model."


def model_card(provenance: dict[str, Any], config: Shape, layout: str, version: str) -> str:
    """Fill the card from what provenance.json holds."""
    own = "settings" in provenance
    licence = "Apache 2.0, as amplify_ds." if own else "The weights keep the licence of the model they come from."
    sizes = {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    settings = {"intermediate_size": config.intermediate_size, "max_length": config.context_length, **sizes}
    return CARD.format(
        licence="license: apache-2.0\n" if own else "",
        library="library_name: transformers\n" if layout == "hf" else "",
        made="pretrained" if own else "converted",
        version=version,
        use=USE[layout],
        parts=f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, 27 tokens",
        training=_training(provenance) if own else UNKNOWN,
        validation=_validation(provenance.get("progress", {}).get("history", [])) if own else UNKNOWN,
        settings=yaml.safe_dump(provenance["settings"] if own else settings, sort_keys=False),
        places="".join(f"- {_place(place)}\n" for place in provenance["exported_from"]),
        licence_text=licence + ("" if layout != "hf" or own else " The Python files of this folder: Apache 2.0."),
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
    """Where the run began, as a sentence, and where that began."""
    if origin is None:
        return ""
    step = f", step {origin['step']:,} ({origin['progress']['residues']:,} residues)" if "progress" in origin else ""
    return f"It began with the weights of {_place(origin, step)}. " + _origin(origin.get("origin"))


def _place(place: dict[str, Any], step: str = "") -> str:
    commit = f", commit {place['commit']}" if "commit" in place else ""
    digests = place["sha256"] if isinstance(place["sha256"], dict) else {"": place["sha256"]}
    sums = ", ".join(f"{name} sha256 `{digest}`".lstrip() for name, digest in digests.items())
    layout = f", {place['layout']} layout" if "layout" in place else ""
    return f"`{place['path']}`{step}{layout}{commit}, {sums}"
