"""The model card (README.md) of an exported model."""

from __future__ import annotations

from typing import Any

import yaml

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
tags: [biology, protein, AMPLIFY, masked-language-modelling]
---

# AMPLIFY, pretrained with amplify_ds {version}

An AMPLIFY protein language model (encoder, masked-language modelling), in the layout of the published
`chandar-lab/AMPLIFY_*` checkpoints. It needs torch and transformers; `trust_remote_code=True` loads the model file of
this folder.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained("FOLDER", trust_remote_code=True)
output = model(**tokenizer("MKTAYIAKQR", return_tensors="pt"))
output.last_hidden_state   # embeddings [1, length + 2, hidden_size], after the final norm
output.logits              # [1, length + 2, {vocabulary}]
```

## Training

{step:,} optimizer steps, {residues:,} residues read, {precision}. Training data:

| source | weight | fingerprint of the shards |
|---|---|---|
{sources}

{origin}`provenance.json` has the whole story.

## Validation

| set | protocol | step | perplexity | residue frequencies alone |
|---|---|---|---|---|
{scores}

`published` is 80/10/10 masking of 15 % of the residues, a tenth of the targets standing unmasked; `mask_only` replaces
every target by `<mask>`. The two are not comparable with each other.

## Configuration

```yaml
{settings}```
"""


def model_card(state: dict[str, Any], version: str) -> str:
    """Fill the card from a checkpoint's state."""
    newest = {(item["set"], item["protocol"]): item for item in state["progress"]["history"]}
    scores = [
        f"| {item['set']} | {item['protocol']} | {item['step']} | {item['perplexity']:.3f} | {item['baseline_perplexity']:.3f} |"
        for item in newest.values()
    ]
    sources = [f"| {s['name']} | {s['weight']} | `{s['fingerprint']}` |" for s in state["binding"]["training data"]]
    return CARD.format(
        version=version, vocabulary=state["model"]["vocab_size"], step=state["step"],
        residues=state["progress"]["residues"], precision=state["precision"],
        origin=_origin(state["origin"]), sources="\n".join(sources), scores="\n".join(scores) or "| none | | | | |",
        settings=yaml.safe_dump(state["settings"], sort_keys=False),
    )  # fmt: skip


def _origin(origin: dict[str, Any] | None) -> str:
    """Where the run began, as a sentence, and where that began."""
    if origin is None:
        return ""
    step = f", step {origin['step']:,} ({origin['progress']['residues']:,} residues)" if "step" in origin else ""
    first = f"It began with the weights of `{origin['path']}`{step}, sha256 `{origin['sha256']}`. "
    return first + _origin(origin.get("origin"))
