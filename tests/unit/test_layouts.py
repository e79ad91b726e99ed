"""Import and export of every layout, against checkpoints from the independent code in plain_layouts.py."""

import copy
import errno
import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.errors import AmplifyError
from amplify_ds.hub import conversion, layouts
from amplify_ds.hub.export import export
from amplify_ds.hub.folder import initial_weights, load_model, read_source
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from tests.support.model_folders import SMALL, reference, same, write
from tests.support.plain_layouts import PLAIN

PUBLISHED = {
    "120M": dict(hidden_size=640, num_hidden_layers=24, num_attention_heads=10, intermediate_size=2560),
    "350M": dict(hidden_size=960, num_hidden_layers=32, num_attention_heads=15, intermediate_size=3840),
}
OTHERS = [name for name in PLAIN if name != "hf"]


@pytest.fixture(scope="module")
def model():
    return reference(SMALL)


def plain(model, layout, shape=SMALL):
    return PLAIN[layout](model.state_dict(), shape["num_hidden_layers"], shape["num_attention_heads"])


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """{layout: a folder written by independent code}"""
    path = tmp_path_factory.mktemp("layouts")
    return {layout: write(path / layout, plain(model, layout)) for layout in PLAIN}


@pytest.mark.parametrize("layout", PLAIN)
def test_import_is_exact_and_logits_agree_with_the_reference(model, folders, layout):
    source = read_source(folders[layout])
    assert source.layout == layout and source.notes == [] and source.config.context_length == 512
    same(source.weights, model.state_dict())
    ids = torch.randint(5, 26, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(load_model(folders[layout])(ids).logits, model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", PLAIN)
def test_export_agrees_exactly_with_independent_code(model, folders, layout, tmp_path):
    """From every layout to every layout, and so back again."""
    for source, folder in folders.items():
        _, difference = export(folder, tmp_path / source, layout)
        same(load_file(tmp_path / source / "model.safetensors"), plain(model, layout))
        assert difference < 1e-5
        config = json.loads((tmp_path / source / "config.json").read_text())
        assert config.items() >= SMALL.items() and config["vocab_size"] == 27 and config["max_length"] == 512
        assert config.get("padded_vocab_size") == (None if layout == "hf" else 32)
        card = (tmp_path / source / "README.md").read_text()
        assert str(folder) in card and "Unknown" in card and "license:" not in card
        assert (tmp_path / source / "tokenizer.json").exists()


@pytest.mark.parametrize("layout", PLAIN)
def test_half_precision_is_kept(model, layout, tmp_path):
    weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    expected = {name: tensor.bfloat16() for name, tensor in PLAIN[layout](weights, 3, 2).items()}
    if layout == "te":
        expected["decoder.bias"][27:] = torch.finfo(torch.bfloat16).min
    source = write(tmp_path / "source", expected)
    export(source, tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "again", layout)
    same(load_file(tmp_path / "hf/model.safetensors"), weights)
    same(load_file(tmp_path / "again/model.safetensors"), expected)
    assert json.loads((tmp_path / "again/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("size", ["120M", pytest.param("350M", marks=pytest.mark.slow)])
def test_published_shapes_are_converted_and_back(size):
    """Each row has its number as values, which shows misplaced rows and is faster than random values."""
    shape = PUBLISHED[size]
    with torch.device("meta"):
        names = ReferenceAMPLIFY(**shape).state_dict()
    weights = {
        name: torch.arange(like.shape[0], dtype=torch.float32)
        .add(0.5 + 4096 * i)
        .reshape(-1, *[1] * (like.dim() - 1))
        .expand(like.shape)
        for i, (name, like) in enumerate(names.items())
    }
    config = AMPLIFYConfig(**shape)
    for layout in OTHERS:
        expected = PLAIN[layout](weights, shape["num_hidden_layers"], shape["num_attention_heads"])
        shapes = conversion.expected_shapes(config, layouts.LAYOUTS[layout])
        assert shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
        assert conversion.recognise(expected, "here").name == layout
        converted, notes = conversion.to_published(expected, config, layouts.LAYOUTS[layout], "here")
        assert notes == []
        same(converted, weights)
        del converted
        same(conversion.from_published(weights, config, layouts.LAYOUTS[layout]), expected)


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("layout", PLAIN)
def test_a_configuration_is_inferred_from_the_shapes(size, layout):
    config = AMPLIFYConfig(**PUBLISHED[size])
    shapes = conversion.expected_shapes(config, layouts.LAYOUTS[layout])
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    inferred, note = conversion.config_from_shapes(tensors, layouts.LAYOUTS[layout], "here")
    assert {key: getattr(inferred, key) for key in PUBLISHED[size]} == PUBLISHED[size]
    assert "heads of 64" in note


def test_a_folder_without_config_prints_its_assumptions(model, tmp_path, capfd):
    source = write(tmp_path / "source", plain(model, "megatron"), config=None)
    weights, origin = initial_weights(source)
    assert "no config.json: inferred 3 layers" in capfd.readouterr().err
    same(weights, model.state_dict())
    assert origin["layout"] == "megatron" and origin["path"] == str(source)


def test_ignored_entries_and_trained_padding_are_named(model, tmp_path):
    tensors = plain(model, "te")
    extra_state = "amplify.transformer_encoder.0.self_attention.layernorm_qkv._extra_state"
    tensors |= {extra_state: torch.zeros(3, dtype=torch.uint8), "amplify.rotary_embeddings.inv_freq": torch.zeros(32)}
    tensors["decoder.weight"][30] += 1
    source = read_source(write(tmp_path / "source", tensors))
    assert (
        len(source.notes) == 2
        and extra_state in source.notes[0]
        and "decoder.weight: its padding rows" in source.notes[1]
    )
    same(source.weights, model.state_dict())


def test_shards_are_read(model, folders, tmp_path):
    tensors = plain(model, "te")
    names = sorted(tensors)
    folder = write(tmp_path / "source", {})
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name].contiguous() for name in names if weight_map[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    same(read_source(folder).weights, model.state_dict())
    index.write_text(json.dumps({"weight_map": {name: weight_map[name] for name in names[1:]}}))
    with pytest.raises(AmplifyError, match="its tensors differ from those that .* lists: " + names[0]):
        read_source(folder)
    index.write_text(json.dumps({"weight_map": {name: "../source/" + weight_map[name] for name in names}}))
    with pytest.raises(AmplifyError, match="names of files in the same folder"):
        read_source(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(AmplifyError, match="model-00002-of-00002.safetensors: cannot be read"):
        read_source(folder)


def break_tensor(tensors, problem):
    key = next(name for name in tensors if "1" in name and tensors[name].dim() == 2)
    if problem == "missing":
        del tensors[key]
    elif problem == "extra":
        tensors[key := key + ".further"] = torch.zeros(1)
    elif problem == "shape":
        tensors[key] = tensors[key][:-1]
    else:
        tensors[key] = tensors[key].to(torch.int8)
    return key


@pytest.mark.parametrize("layout", PLAIN)
@pytest.mark.parametrize(
    "problem, message",
    [
        ("missing", "1 missing: "),
        ("extra", "1 not in this layout: "),
        ("shape", "1 with the wrong shape: "),
        ("type", "1 not floating-point: "),
    ],
)
def test_wrong_keys_and_shapes_are_named(model, layout, problem, message, tmp_path):
    tensors = dict(plain(model, layout))
    key = break_tensor(tensors, problem)
    source = write(tmp_path / "source", tensors)
    with pytest.raises(AmplifyError) as error:
        export(source, tmp_path / "out")
    assert message + key in str(error.value) and [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "config, message",
    [
        ({"vocab_size": 33}, "vocabulary differs.*vocab_size 33"),
        ({"mask_token_id": 32}, "vocabulary differs.*mask_token_id 32, expected 2"),
        ({"rms_norm": False}, "rms_norm must be True"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number from 1 to 1,048,576"),
        ({"num_hidden_layers": "three"}, "num_hidden_layers is 'three'"),
        ([], "expected a JSON object"),
    ],
)
def test_a_configuration_that_is_not_amplify_s_is_refused(model, config, message, tmp_path):
    source = write(tmp_path / "source", model.state_dict())
    (source / "config.json").write_text(json.dumps({**SMALL, **config} if config else config))
    with pytest.raises(AmplifyError, match=message):
        read_source(source)


@pytest.mark.parametrize("layout", PLAIN)
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
@pytest.mark.parametrize("value", [10**9, 2**62, -1, 10**300, 1e9, "9" * 10**5])
def test_absurd_sizes_are_one_message_within_a_second(model, layout, key, value, tmp_path):
    folder = write(tmp_path / "m", plain(model, layout), {**SMALL, key: value})
    began = time.process_time()
    with pytest.raises(AmplifyError, match="config.json: ") as error:
        read_source(folder)
    assert (time.process_time() - began < 1 and key in str(error.value)) or value == 10**300, error.value
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "layout, dtype", [*((name, "float32") for name in PLAIN), ("hf", "bfloat16"), ("hf", "float16")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(model, layout, dtype, value, tmp_path):
    name = "transformer_encoder.1.wo.weight"
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_parameter(name)[3, 4:6] = value
    weights = {key: tensor.to(getattr(torch, dtype)) for key, tensor in plain(broken, layout).items()}
    folder = write(tmp_path / "m", weights)
    for read in (read_source, load_model, initial_weights, lambda path: export(path, tmp_path / "out")):
        with pytest.raises(AmplifyError, match=f"m: 2 of the 16,384 values of {name} are not finite"):
            read(folder)
    assert [x.name for x in tmp_path.iterdir()] == ["m"]


def test_large_but_finite_weights_are_read(model, tmp_path):
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    weights["encoder.weight"][:] = 65504.0  # their sum is not finite in half precision
    assert read_source(write(tmp_path / "m", weights)).weights["encoder.weight"].max() == 65504


def test_another_vocabulary_is_refused(model, folders, tmp_path):
    weights = dict(model.state_dict())
    weights["encoder.weight"] = torch.zeros(33, 128)
    with pytest.raises(AmplifyError, match="33 rows in encoder.weight, expected 27"):
        read_source(write(tmp_path / "rows", weights))
    tokens = {token: i for i, token in enumerate("<pad> <unk> <mask> <bos> <eos> | A L".split())}
    other = write(tmp_path / "order", model.state_dict())
    (other / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}, "added_tokens": []}))
    with pytest.raises(AmplifyError, match="vocabulary differs.*tokenizer.json: 'A' is 6"):
        read_source(other)


def test_other_models_and_pickle_are_refused(tmp_path):
    with pytest.raises(AmplifyError, match="not the weights of an AMPLIFY model; found lm_head.bias"):
        read_source(write(tmp_path / "other", {"lm_head.bias": torch.zeros(3)}))
    (tmp_path / "pickle").mkdir()
    torch.save({}, tmp_path / "pickle/pytorch_model.bin")
    with pytest.raises(AmplifyError, match="pytorch_model.bin: is a pickle file.*save_file"):
        read_source(tmp_path / "pickle")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/__0_0.distcp").touch()
    with pytest.raises(AmplifyError, match="dcp_to_torch"):
        read_source(tmp_path / "parts")
    bad = write(tmp_path / "short", {"decoder.bias": torch.zeros(27)})
    (bad / "model.safetensors").write_bytes((bad / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(AmplifyError, match="cannot be read as safetensors"):
        read_source(bad)


@pytest.mark.parametrize("layout", OTHERS)
def test_the_check_of_an_export_detects_swapped_heads(folders, layout, tmp_path, monkeypatch):
    """A table that is wrong in both directions is its own inverse, but the logits of the folder differ."""
    split, join = layouts.ByHead.split, layouts.ByHead.join
    changed = {
        "split": lambda self, whole, heads: (
            [x.roll(-64, 0) for x in split(self, whole, heads)[:2]] + split(self, whole, heads)[2:]
        ),
        "join": lambda self, parts, heads: join(self, [x.roll(64, 0) for x in parts[:2]] + parts[2:], heads),
    }
    for name, function in changed.items():
        monkeypatch.setattr(layouts.ByHead, name, function)
    with pytest.raises(AmplifyError, match="logits of the exported model differ by"):
        export(folders["hf"], tmp_path / "wrong", layout)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_read_permission_is_not_reported_as_missing(folders, monkeypatch):
    """The error is simulated, because root may read everything."""
    real_open = open

    def refusing(name, *rest, **options):
        if str(name).endswith(".safetensors"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return real_open(name, *rest, **options)

    monkeypatch.setattr("builtins.open", refusing)
    with pytest.raises(AmplifyError, match="model.safetensors: Permission denied. User .* lacks the permission"):
        read_source(folders["hf"])
