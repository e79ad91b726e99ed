"""The layout of the official code: config.yaml beside model.safetensors, against a plain model with other heads."""

import json

import pytest
import torch
from safetensors.torch import save_file

from amplify_ds.benchmarks import padded_model
from amplify_ds.errors import AmplifyError
from amplify_ds.hub.export import export
from amplify_ds.hub.folder import load_model, read_source
from amplify_ds.vocab import TOKENS

# 4 heads of 32; the shapes are the same as with 2 heads of 64, the size in every published model.
COMPOSED = """\
seed: 0
wandb: {name: null, dir: "outputs/${now:%Y-%m-%d}/wandb"}
tokenizer:
  vocab_path: conf/tokenizer/amplify_vocab.txt
  vocab_size: 27
  pad_token_id: 0
  mask_token_id: 2
  bos_token_id: 3
  eos_token_id: 4
  unk_token_id: 1
  other_special_token_ids: null
  max_length: 1024
model:
  _name_: AMPLIFY
  dropout_prob: 0
  embedding_init_range: 0.02
  decoder_init_range: 0.02
  norm_eps: 1e-03
  hidden_act: SwiGLU
  pre_activation_layer_norm: true
  layer_norm_after_embedding: false
  layer_norm_before_last_layer: true
  rms_norm: true
  hidden_size: 128
  num_hidden_layers: 2
  num_attention_heads: 4
  intermediate_size: 512
trainer:
  max_steps: 10
  train: {max_length: 512}
"""


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padded_model, "HEAD_SIZE", 32)
        torch.manual_seed(0)
        model = padded_model.ReferenceAMPLIFY(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, norm_eps=1e-3
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.dim() > 1 else 1.0).add_(0.05 * torch.randn_like(parameter))
        yield model


@pytest.fixture
def folder(model, tmp_path):
    (tmp_path / "official").mkdir()
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, tmp_path / "official/model.safetensors")
    (tmp_path / "official/config.yaml").write_text(COMPOSED)
    return tmp_path / "official"


@torch.no_grad()
def test_heads_length_and_epsilon_are_read(model, folder, tmp_path):
    source = read_source(folder)
    config = source.config
    assert (config.num_attention_heads, config.context_length, config.norm_eps) == (4, 1024, 1e-3)
    assert source.notes == [] and source.layout == "hf"
    ids = torch.randint(5, 26, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = model(ids)
    torch.testing.assert_close(load_model(folder)(ids).logits, expected, atol=1e-5, rtol=1e-5)
    (folder / "config.yaml").rename(folder / "else.yaml")
    assert (load_model(folder)(ids).logits - expected).abs().max() > 0.01, "heads cannot be inferred from shapes"
    (folder / "else.yaml").rename(folder / "config.yaml")
    export(folder, tmp_path / "exported")
    assert json.loads((tmp_path / "exported/config.json").read_text())["num_attention_heads"] == 4
    torch.testing.assert_close(load_model(tmp_path / "exported")(ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "old, new, length",
    [
        ("", "", 1024),
        ("  max_length: 1024\n", "", 2048),
        ("  max_length: 1024", "  max_length: null", 2048),
        ("  rms_norm: true\n", "  rms_norm: true\n  max_length: 700\n", 700),
    ],
)
def test_source_of_the_length(folder, old, new, length, capfd):
    text = COMPOSED.replace(old, new)
    if length == 700:
        text = text.replace("  max_length: 1024\n", "")
    (folder / "config.yaml").write_text(text)
    assert load_model(folder).config.context_length == length
    note = "config.yaml has no max_length for the model; assumed 2048, the default of the official code"
    assert (note in capfd.readouterr().err) == (length == 2048)


def test_allowed_differences(folder):
    """In the case of the activation; the other sections may be missing."""
    begin, end = COMPOSED.index("model:\n"), COMPOSED.index("trainer:")
    text = COMPOSED[begin:end].replace("SwiGLU", "swiglu").replace("norm_eps: 1e-03", "norm_eps: 0.001")
    (folder / "config.yaml").write_text(text)
    config = read_source(folder).config
    assert (config.num_attention_heads, config.norm_eps, config.vocab_size) == (4, 1e-3, 27)


def test_config_json_takes_precedence(folder):
    (folder / "config.yaml").write_text("nothing")
    sizes = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    (folder / "config.json").write_text(json.dumps(sizes))
    assert read_source(folder).config.num_attention_heads == 4


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("model:", "models:", "has no section `model`"),
        ("  num_attention_heads: 4\n", "", "the section `model` lacks num_attention_heads"),
        ("  hidden_size: 128\n  num_hidden_layers: 2\n", "", "`model` lacks hidden_size, num_hidden_layers"),
        ("num_attention_heads: 4", "num_attention_heads: null", "the section `model` lacks num_attention_heads"),
        ("num_attention_heads: 4", "num_attention_heads: four", "num_attention_heads is 'four', expected a whole"),
        ("num_attention_heads: 4", "num_attention_heads: 3", "hidden_size 128 must be num_attention_heads 3 times"),
        ("num_attention_heads: 4", "num_attention_heads: ${heads}", "num_attention_heads is the reference"),
        ("num_hidden_layers: 2", "num_hidden_layers: 3", "the weights do not match the configuration"),
        ("rms_norm: true", "rms_norm: true\n  rope_base: 500000", "unknown keys in the section `model`: rope_base"),
        ("rms_norm: true", "rms_norm: false", "config.yaml: .*rms_norm must be True"),
        ("SwiGLU", "GELU", "config.yaml: .*hidden_act must be 'SwiGLU'"),
        ("rms_norm: true", "normalized_transformer: true", "normalized_transformer is True, expected False"),
        ("_name_: AMPLIFY", "_name_: ESM", "_name_ is 'ESM', expected 'AMPLIFY'"),
        ("norm_eps: 1e-03", "norm_eps: small", "norm_eps is 'small', expected a number"),
        ("rms_norm: true", "vocab_size: 27", "vocab_size appears in both `model` and `tokenizer`"),
        ("vocab_size: 27", "vocab_size: 32", "vocabulary differs.*config.yaml: vocab_size 32, expected 27"),
        ("mask_token_id: 2", "mask_token_id: 5", "vocabulary differs.*config.yaml: mask_token_id 5, expected 2"),
        (COMPOSED, "defaults: [_self_, {model: 350M}]\nseed: 0\n", "has no section `model`.*template.*hydra"),
        (COMPOSED, "- 1\n", "expected sections such as `model` and `tokenizer`, found list"),
        (COMPOSED, "", "found NoneType"),
        (COMPOSED, "model: {", "cannot be read as YAML"),
        (COMPOSED, "model: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        (COMPOSED, "a: &a [1]\nb: *a\n", "anchors and aliases .* are not supported"),
        (COMPOSED, "[" * 20000, "cannot be read as YAML"),
        (COMPOSED, "# " + "x" * 2**20, "larger than 65,536 bytes"),
        (COMPOSED, "model: \x00", "cannot be read as YAML"),
    ],
)
def test_unsupported_configurations_are_refused(folder, old, new, message):
    (folder / "config.yaml").write_text(COMPOSED.replace(old, new))
    with pytest.raises(AmplifyError, match=message) as error:
        read_source(folder)
    assert str(folder) in str(error.value)


def test_a_vocabulary_file_of_another_order_is_refused(folder):
    file = folder / "amplify_vocab.txt"
    file.write_text("\n".join(TOKENS) + "\n")
    read_source(folder)
    file.write_text("\n".join([*TOKENS[:6], "A", "L", *TOKENS[8:]]) + "\n")
    with pytest.raises(AmplifyError, match="amplify_vocab.txt: its vocabulary differs"):
        read_source(folder)
