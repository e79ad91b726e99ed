"""Small training runs: their settings, how to start them, and their results."""

import base64
import json
import subprocess
import sys
from pathlib import Path

from amplify_ds.network import free_port
from tests.support.commands import environment, ranks_of, run
from tests.support.paths import ROOT

# A model of 0.1 million parameters and 10 short steps: enough to detect errors, quick on one core.
SMALL = {
    "model.hidden_size": 64,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 1,
    "model.intermediate_size": 128,
    "training.steps": 10,
    "training.global_batch_tokens": 4096,
    "optimizer.lr": 5e-3,
    "optimizer.warmup_steps": 3,
    "optimizer.decay_steps": 9,
    "log.every": 1,
    "evaluation.every": 0,
    "evaluation.max_rows": 4,
    "checkpoint.every": 0,
}
EVERY_THREE = {"checkpoint__every": 3, "checkpoint__keep_last": 9}


def launch_words(ranks: int, output, shards, stage: int | str = 1, **settings) -> list[str]:
    """Return the command that `deepspeed … --module amplify_ds.train …` runs here. settings: section__field=value.

    One rank needs no launcher. Several use DeepSpeed's launcher for one machine without the runner that calls it, which
    only adds seconds; tests of launch/train.sh use both.
    """
    command = [sys.executable, "-m"]
    if ranks > 1:
        world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
        command += ["deepspeed.launcher.launch", f"--world_info={world}", "--master_addr", "127.0.0.1"]
        command += ["--master_port", str(free_port()), "--no_local_rank", "--log_level=error", "--module"]
    return [*command, "amplify_ds.train", *training_words(output, shards, stage, **settings)]


def training_words(output, shards, stage: int | str = 1, **settings) -> list[str]:
    """Return the arguments of amplify_ds.train in `launch_words`."""
    flags = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
    arguments = ["--recipe", "tiny", "--deepspeed_config", ROOT / f"ds_configs/zero{stage}.json"]
    arguments += ["--data.train", shards["train"], "--data.validation", f"held_out={shards['validation']}"]
    arguments += ["--output", output]
    return [str(x) for x in (*arguments, *(part for key, value in flags.items() for part in (_flag(key), value)))]


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-') if key in ('init_from', 'skip_rows') else key}"


def train(ranks: int, output, shards, stage: int | str = 1, **settings) -> subprocess.CompletedProcess:
    """Train on forked ranks; return their joint exit code, stdout and stderr."""
    return ranks_of(ranks, "amplify_ds.train", *training_words(output, shards, stage, **settings))


def launch(ranks: int, output, shards, stage: int | str = 1, **settings) -> subprocess.CompletedProcess:
    """Train through DeepSpeed's launcher, with an interpreter for each rank."""
    return run(*launch_words(ranks, output, shards, stage, **settings), env=environment(ranks))


def train_with_faults(faults: dict, ranks: int, output, shards, stage: int | str = 1, **settings):
    """Train on forked ranks with faults, see faulty_train.py."""
    arguments = training_words(output, shards, stage, **settings)
    return ranks_of(ranks, "tests.support.faulty_train", *arguments, FAULTS=json.dumps(faults))


def losses(output) -> dict[int, float]:
    """Return {step: training loss} from the TensorBoard events of a run."""
    from amplify_ds.plot import read_scalars

    return dict(zip(*read_scalars(Path(output))["train/loss"]))


def final_tensors(output: Path) -> dict:
    from safetensors.torch import load_file

    folder = output / "checkpoints/step-00000010"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "optimizer.safetensors")}


def assert_same_bits(output: Path, expected: Path) -> None:
    """Compare every loss, and the weights and the state of the optimizer after step 10."""
    assert losses(output) == losses(expected)
    tensors, expected_tensors = final_tensors(output), final_tensors(expected)
    assert tensors.keys() == expected_tensors.keys()
    assert all(tensors[name].equal(expected_tensors[name]) for name in tensors)
