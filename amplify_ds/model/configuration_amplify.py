"""The configuration of AMPLIFY for transformers.

Depends on transformers only: this file is part of every exported model folder.
"""

from transformers import PretrainedConfig

from .shape import FIELDS, FIXED, Shape


class AMPLIFYConfig(Shape, PretrainedConfig):
    """A `Shape` with the fields that transformers gives every model. Raises the errors of `Shape`."""

    def __init__(self, *sizes, **fields):
        Shape.__init__(self, *sizes, **{name: fields.pop(name) for name in FIELDS & fields.keys()})
        fields.setdefault("tie_word_embeddings", False)
        PretrainedConfig.__init__(  # type: ignore[call-arg]  # any keyword goes, by a decorator of transformers'
            self,
            pad_token_id=self.pad_token_id,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            **fields,
        )

    def to_dict(self):
        fields = super().to_dict()
        fields["max_length"] = fields.pop("context_length", self.context_length)
        return {**FIXED, **fields}
