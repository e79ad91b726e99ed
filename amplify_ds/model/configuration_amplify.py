"""The configuration of AMPLIFY, with the field names of the published `config.json`.

Depends on transformers only: this file is part of every exported model folder.
"""

from transformers import PretrainedConfig

# The official code can also build these variants; no published checkpoint uses them, and neither does this model.
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


class AMPLIFYConfig(PretrainedConfig):
    """Shape of an AMPLIFY encoder.

    `intermediate_size` is the nominal one of the published files; `ffn_size` is the SwiGLU width that is built from
    it. `max_length` (tokens a sequence, `<bos>` and `<eos>` included) is kept as `context_length`, because
    transformers 5 takes a model attribute of the name `max_length` for a setting of text generation.

    Raises ValueError, naming the field, for a variant that this model does not build and for sizes that do not fit.
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
        **kwargs,
    ):
        for name, value in FIXED.items():
            if kwargs.pop(name, value) != value:
                raise ValueError(f"AMPLIFY configuration: {name} must be {value!r}; this model builds no other variant")
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
        self.unk_token_id = unk_token_id
        self.mask_token_id = mask_token_id
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)

    @property
    def head_size(self):
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self):
        """SwiGLU width: two thirds of `intermediate_size`, rounded up to a multiple of 8 (1712 of 2560)."""
        return -(-int(2 * self.intermediate_size / 3) // 8) * 8

    def to_dict(self):
        fields = super().to_dict()
        fields["max_length"] = fields.pop("context_length", self.context_length)
        return {**FIXED, **fields}
