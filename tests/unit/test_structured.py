"""Untrusted JSON and YAML: the content that the standard parsers return, or one message within a second."""

import json
import math
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds import config, structured
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.hub import tensors
from amplify_ds.inference.contacts import head
from amplify_ds.training import ds_config

HUGE = "9" * 10_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(12)
)
BAD_JSON = {
    "repeated": ('{"a": {"b": 1, "c": 2, "b": 3}}', "b appears twice"),
    "beyond 64 bits": (f'{{"a": {2**64}}}', f"{2**64} is an integer beyond 64 bits"),
    "below 64 bits": (f'{{"a": {-(2**63) - 1}}}', "is an integer beyond 64 bits"),
    "huge": (f'{{"a": {HUGE}}}', "… is an integer beyond 64 bits"),
    "deep": ('{"a":' * 100 + "1" + "}" * 100, "nested deeper than 64 levels"),
    "bottomless": ("[" * 1_000_000, "nested deeper than 64 levels"),
    "text": ("none", "Expecting value"),
    "bytes": (b"\xff\xfe\x00\x80{", "decode"),
    "large": (" " * (2**26 + 1), "larger than"),
}
BAD_YAML = {
    "repeated": ("a: {b: 1, c: 2, b: 3}", "line 1: b appears twice"),
    "repeated at the top": ("a: 1\nb: 2\na: 1\n", "line 3: a appears twice"),
    "bomb": (BOMB, "anchors and aliases"),
    "cycle": ("a: &a [*a]", "anchors and aliases"),
    "beyond 64 bits": (f"a: {2**64}", "is an integer beyond 64 bits"),
    "huge": (f"a: {HUGE}", "… is an integer beyond 64 bits"),
    "huge hexadecimal": (f"a: 0x{HUGE}", "… is an integer beyond 64 bits"),
    "deep": ("a: " + "[" * 100 + "]" * 100, "nested deeper than 64 levels"),
    "bottomless": ("a: " + "{a: " * 10_000, "nested deeper than 64 levels"),
    "no date": ("a: 2024-99-99", "month must be in 1..12"),
    "no number": ("a: !!int x", "invalid literal"),
    "an object": ("a: !!python/object:os.system {}", "could not determine a constructor"),
    "unhashable": ("? [a]\n: 1", "unhashable"),
    "large": ("# " + "x" * 2**16, "larger than"),
    "bytes": (b"a: \xff", "decode"),
}


def refused(read, path, text, message):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    with pytest.raises(AmplifyError) as error:
        read(path)
    assert time.process_time() - began < 1
    assert message in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 600, error.value
    return str(error.value)


@pytest.mark.parametrize("kind", BAD_JSON)
@pytest.mark.parametrize(
    "read, name",
    [
        (structured.read_json, "x.json"),
        (lambda path: ds_config.read(str(path)), "x.json"),
        (tensors.read_json, "x.json"),
        (head.read, "x.json"),
        (lambda path: Shards(path.parent), "manifest.json"),
    ],
    ids=["any", "DeepSpeed", "model folder", "contact head", "manifest"],
)
def test_json_is_refused_in_one_message(tmp_path, kind, read, name):
    refused(read, tmp_path / name, *BAD_JSON[kind])


@pytest.mark.parametrize("kind", BAD_YAML)
def test_yaml_is_refused_in_one_message(tmp_path, kind):
    refused(structured.read_yaml, tmp_path / "x.yaml", *BAD_YAML[kind])
    refused(lambda path: config.resolve("tiny", str(path), {}), tmp_path / "x.yaml", *BAD_YAML[kind])


def test_an_endless_device_is_refused():
    with pytest.raises(AmplifyError, match="/dev/zero: cannot be read as YAML: it is larger than"):
        config.resolve("tiny", "/dev/zero", {})
    with pytest.raises(AmplifyError, match="/dev/zero: cannot be read as JSON: it is larger than"):
        structured.read_json("/dev/zero")


def test_a_setting_that_appears_as_a_section_and_with_a_dot_is_refused(tmp_path):
    for text in ("training: {steps: 5}\ntraining.steps: 6\n", "training.steps: 6\ntraining: {steps: 5}\n"):
        refused(lambda path: config.resolve("tiny", str(path), {}), tmp_path / "x.yaml", text, "steps appears twice")
    (tmp_path / "x.yaml").write_text("training.steps: 6\ntraining: {seed: 5}\n")
    training = config.resolve("tiny", str(tmp_path / "x.yaml"), {}).training
    assert (training.steps, training.seed) == (6, 5)


@pytest.mark.parametrize("name", ["training.steps", "checkpoint.every", "data.workers", "training.global_batch_tokens"])
def test_settings_are_integers_of_64_bits(name):
    for value in (str(2**63), HUGE, 2**70):
        with pytest.raises(AmplifyError, match=name.split(".")[0]) as error:
            config.resolve("tiny", None, {name: value, "log.every": "1"})
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_sizes_of_a_model_have_a_limit(name):
    with pytest.raises(AmplifyError, match=f"model.{name} .*less than or equal to 65536"):
        config.resolve("tiny", None, {f"model.{name}": "1000000000"})


@pytest.mark.parametrize(
    "name, most", [("training.steps", 2**30), ("training.global_batch_tokens", 2**32), ("data.workers", 1024)]
)
def test_settings_above_their_limits_are_refused(name, most):
    assert config.resolve("tiny", None, {name: str(most)})
    with pytest.raises(AmplifyError, match=f"{name} .*less than or equal to {most}"):
        config.resolve("tiny", None, {name: str(most + 1)})


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.integers(-(2**63), 2**64 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(VALUES)
def test_valid_content_agrees_with_the_standard_parsers(value):
    text = json.dumps(value)
    assert structured.parse_json(text) == json.loads(text)
    text = yaml.safe_dump(value)
    assert structured.parse_yaml(text) == yaml.safe_load(text)


def test_infinity_and_nan_are_read_as_python_writes_them():
    assert structured.parse_json("[Infinity, -Infinity]") == [math.inf, -math.inf]
    assert math.isnan(structured.parse_json("NaN"))
