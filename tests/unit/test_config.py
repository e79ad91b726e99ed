"""The run configuration and the DeepSpeed file: merging, and errors for invalid content."""

import json
from importlib import resources

import pytest
import yaml

from amplify_ds import config
from amplify_ds.errors import AmplifyError
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.train import parse
from amplify_ds.training import derived, ds_config
from tests.support.paths import ROOT


def refused(text, recipe="tiny", file=None, **flags):
    with pytest.raises(AmplifyError) as error:
        config.resolve(recipe, file, {key.replace("__", "."): value for key, value in flags.items()})
    assert text in str(error.value), str(error.value)


def test_every_recipe_is_complete_by_itself():
    for name in config.recipes():
        content = yaml.safe_load((resources.files("amplify_ds.recipes") / f"{name}.yaml").read_text())
        assert [(s, f) for s in content for f in content[s]] == [(s, f) for s, f, _ in config.fields()], name


@pytest.mark.parametrize("recipe, count", [("120M", 118_276_507), ("350M", 354_008_667)])
def test_the_published_recipes_build_the_published_models(recipe, count):
    run = config.resolve(recipe, None, {})
    assert derived.parameter_count(derived.model_config(run, 512)) == count
    assert run.training.global_batch_tokens == 160 * 8192
    optimizer = run.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.eps) == (1e-3, (0.9, 0.95), 0.01, 1e-8)


def test_parameter_count_is_that_of_the_built_model():
    from amplify_ds.model.modeling_amplify import AMPLIFY

    shape = AMPLIFYConfig(hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=700)
    assert derived.parameter_count(shape) == sum(p.numel() for p in AMPLIFY(shape).parameters())


def test_flags_beat_the_file_and_the_file_beats_the_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer: {lr: 5e-3, eps: 1e-6}\ndata: {validation: [a, b=c]}\n")
    run = config.resolve("tiny", str(file), {"optimizer.lr": "7e-3"})
    assert (run.optimizer.lr, run.optimizer.eps, run.data.validation) == (7e-3, 1e-6, ["a", "b=c"])
    assert run.optimizer.weight_decay == config.resolve("tiny", None, {}).optimizer.weight_decay


def test_flags_of_the_command_line_get_their_types():
    arguments = (
        "--recipe tiny --output o --data.train d --optimizer.betas 0.8 0.9 --training.activation_checkpointing true"
    )
    _, run = parse(arguments.split())
    assert run.optimizer.betas == (0.8, 0.9) and run.training.activation_checkpointing is True


def test_bad_settings_are_named_with_their_source(tmp_path):
    refused("optimizer.lrr (command line): no such setting; did you mean optimizer.lr?", optimizer__lrr="1")
    refused("did you mean training.seed?", training__sed="1")
    refused("did you mean optimizer.warmup_steps?", warmup_steps="1")
    refused("optimizer.lr (command line): Input should be greater than 0, found '-1'", optimizer__lr="-1")
    refused("data.workers", data__workers="many")
    refused("set in the DeepSpeed file", zero__stage="1")
    refused("optimizer.betas", optimizer__betas=["2.0", "0.9"])
    refused("training.seed", training__seed="9" * 30)
    refused("optimizer.lr", optimizer__lr="inf")
    refused("mask_share and random_share together", masking__mask_share="0.95")
    refused("decay_steps", optimizer__warmup_steps="100000")
    refused("must be a multiple of log.every", log__every="7")
    file = tmp_path / "bad.yaml"
    file.write_text("optimiser: {lr: 1}\n")
    refused(f"optimiser.lr ({file}): no such setting; did you mean optimizer.lr?", file=str(file))
    file.write_text("training: {steps: true}\n")
    refused("steps must not be true or false", file=str(file))
    file.write_text("model:\n")
    refused("model must hold settings", file=str(file))
    file.write_text("optimizer: {lr: [\n")
    refused("cannot be read as YAML", file=str(file))
    file.write_text("just text\n")
    refused("expected sections", file=str(file))
    refused("no such configuration file", file=str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    "arguments, text",
    [
        ("--recipe tiny --output o", "data.train is not set"),
        ("--recipe tiny --output o --data.train d --optimizer.lerning_rate 3", "optimizer.lerning_rate"),
        ("--recipe tiny --output o --data.train d --training.steps 5 stray", "stray"),
        ("--recipe huge --output o", "invalid choice: 'huge'"),
        ("--recipe tiny", "--output"),
    ],
)
def test_bad_command_lines(arguments, text):
    with pytest.raises(AmplifyError) as error:
        parse(arguments.split())
    assert text in str(error.value)


def default_row_tokens():
    from amplify_ds.prepare.build_options import parse

    return parse(["--input", "in.fasta", "--output", "out"]).settings["row_tokens"]


@pytest.mark.parametrize("recipe", config.recipes())
def test_every_recipe_and_the_default_shards_fit_on_up_to_eight_devices(recipe):
    run, row_tokens = config.resolve(recipe, None, {}), default_row_tokens()
    for world_size in range(1, 9):
        splits = [derived.split_batch(run, row_tokens, rank, world_size) for rank in range(world_size)]
        assert [row for split in splits for row in split.share] == list(
            range(run.training.global_batch_tokens // row_tokens)
        ), "each row belongs to one device"
        for split in splits:
            assert len(split.share) and split.micro_rows <= run.training.micro_batch_rows
            assert split.micro_rows * split.accumulation >= len(split.share)
            assert split.computed_rows < 1.25 * split.global_rows or split.global_rows < 16, "few rows of padding"


def test_a_batch_is_shared_by_any_number_of_devices_or_an_error_advises_one():
    def cut(world_size, **flags):
        flags = {key.replace("__", "."): value for key, value in flags.items()}
        return derived.split_batch(config.resolve("120M", None, flags), 8192, 0, world_size)

    assert (cut(16).accumulation, cut(8).accumulation, cut(16).micro_rows) == (1, 2, 10)
    assert (cut(12).micro_rows, cut(12).accumulation) == (7, 2), "13 or 14 of 160 rows each"
    assert cut(8, training__micro_batch_rows="3").micro_rows == 3 and cut(160).micro_rows == 1
    for world_size, tokens in ((1, 1_000_000), (2, 4096), (3, 8192), (161, 160 * 8192), (7, 7 * 8192 + 1)):
        with pytest.raises(AmplifyError, match=f"is {tokens:,}, but rows .* 8,192 tokens") as error:
            cut(world_size, training__global_batch_tokens=str(tokens))
        advised = str(error.value).rpartition(" ")[2]
        split = cut(world_size, training__global_batch_tokens=advised)
        assert len(split.share) * world_size == split.global_rows, "the advised number is shared evenly"


@pytest.mark.parametrize(
    "content, text",
    [
        ({"gradient_clipping": 1.0}, "the run's setting optimizer.gradient_clipping"),
        ({"bf16": {"enabled": True}}, "the run's setting training.precision"),
        ({"zero_optimisation": {"stage": 1}}, "did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 4}}, "must be 0, 1, 2 or 3"),
        (["stage"], "expected a JSON object"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm must be true"),
        ({"zero_optimization": None}, "must hold settings"),
        ({"zero_optimization": {"stage": True}}, "must be 0, 1, 2 or 3"),
    ],
)
def test_bad_deepspeed_files_are_refused(tmp_path, content, text):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    with pytest.raises(AmplifyError) as error:
        ds_config.read(str(file))
    assert text in str(error.value) and str(file) in str(error.value)


def test_a_repeated_key_is_refused(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 2}}')
    with pytest.raises(AmplifyError, match="zero_optimization appears twice"):
        ds_config.read(str(file))


def test_repeated_flags_add_up():
    arguments = "--recipe tiny --output o --data.train d --data.validation a --data.validation b c".split()
    assert parse(arguments)[1].data.validation == ["a", "b", "c"]


def test_the_repository_s_deepspeed_files_are_read():

    folder = ROOT / "ds_configs"
    assert [ds_config.stage(ds_config.read(str(folder / f"zero{i}.json"))) for i in range(4)] == [0, 1, 2, 3]
