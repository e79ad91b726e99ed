"""The entry `model` of a checkpoint's state.json: the configuration as transformers writes it, without importing it.

It contains the fields that transformers adds to every model, with their default values, so that it can be read as a
complete config.json. Checkpoints have always had them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from amplify_ds.model.shape import FIXED, Shape

DEFAULTS = {
    "architectures": None,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "dtype": None,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "_name_or_path": "",
    "tie_word_embeddings": False,
}


def hub_fields(shape: Shape) -> dict[str, Any]:
    """Return the same as `AMPLIFYConfig(**shape.sizes()).to_dict()`."""
    try:
        transformers = version("transformers")
    except PackageNotFoundError:  # training does not need it
        transformers = None
    return {
        **FIXED,
        **shape.sizes(),
        **DEFAULTS,
        "transformers_version": transformers,
        "model_type": Shape.model_type,
    }
