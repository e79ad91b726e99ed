"""The sizes of an AMPLIFY encoder, with the field names of the published `config.json`.

Depends on nothing: this file is part of every exported model folder, and training uses it without transformers.
AMPLIFYConfig (configuration_amplify.py) adds the fields of transformers.
"""

import inspect

# Options of the official code that have one value in all published checkpoints; this model supports no other.
FIXED = {
    "hidden_act": "SwiGLU",
    "rms_norm": True,
    "att_bias": False,
    "ffn_bias": False,
    "bias": False,
    "layer_norm_after_embedding": False,
    "layer_norm_before_last_layer": True,
    "pre_activation_layer_norm": True,
    "dropout_prob": 0,
}


class Shape:
    """Shape of an AMPLIFY encoder.

    `intermediate_size` is the nominal width of the published files; `ffn_size` is the SwiGLU width derived from it.
    `max_length` (tokens per sequence, including `<bos>` and `<eos>`) is stored as `context_length`, because
    transformers 5 treats an attribute named `max_length` as a setting of text generation.

    Raises ValueError that names the field for an unsupported variant and for sizes that do not fit together.
    """

    model_type = "AMPLIFY"

    def __init__(
        self,
        vocab_size=27,
        hidden_size=640,
        num_hidden_layers=24,
        num_attention_heads=10,
        intermediate_size=2560,
        norm_eps=1e-5,
        embedding_init_range=0.02,
        decoder_init_range=0.02,
        max_length=None,
        context_length=2048,
        pad_token_id=0,
        unk_token_id=1,
        mask_token_id=2,
        bos_token_id=3,
        eos_token_id=4,
        **fixed,
    ):
        for name, value in fixed.items():
            if name not in FIXED:
                raise TypeError(f"AMPLIFY configuration: there is no field {name}")
            if value != FIXED[name]:
                raise ValueError(
                    f"AMPLIFY configuration: {name} must be {FIXED[name]!r}; no other variant is supported"
                )
        if hidden_size % num_attention_heads or hidden_size // num_attention_heads % 2:
            raise ValueError(
                f"AMPLIFY configuration: hidden_size {hidden_size} must be num_attention_heads "
                f"{num_attention_heads} times an even head size"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.norm_eps = norm_eps
        self.embedding_init_range = embedding_init_range
        self.decoder_init_range = decoder_init_range
        self.context_length = context_length if max_length is None else max_length
        self.pad_token_id = pad_token_id
        self.unk_token_id = unk_token_id
        self.mask_token_id = mask_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id

    @property
    def head_size(self):
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self):
        """SwiGLU width: two thirds of `intermediate_size`, rounded up to a multiple of 8 (1712 for 2560)."""
        return -(-int(2 * self.intermediate_size / 3) // 8) * 8

    def sizes(self):
        """Return {field: value} of the published fields that can differ between models; `Shape(**sizes)` is a copy."""
        return {name: self.context_length if name == "max_length" else getattr(self, name) for name in SIZES}


# The arguments of Shape without `context_length`, an alias of `max_length`; and the names of all its fields.
SIZES = tuple(
    name
    for name, parameter in inspect.signature(Shape).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and name != "context_length"
)
FIELDS = frozenset((*SIZES, "context_length", *FIXED))
