"""What several tests share: small shards of real proteins, and the real launcher."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import dnaio
import pytest
from hypothesis import settings

settings.register_profile("no time limits", deadline=None)
settings.load_profile("no time limits")


def examples(few: int = 60):
    """How many examples a property is tried with: few, or as many as the environment says (EXAMPLES=20000)."""
    return settings(max_examples=int(os.environ.get("EXAMPLES", few)), deadline=None)


# A job in a shell's background ignores SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "data_prep" / "example"
# A model of 0.1 million parameters and 10 short steps: enough to tell right from wrong, quick on one core.
SMALL = {
    "model.hidden_size": 64, "model.num_hidden_layers": 2, "model.num_attention_heads": 1,
    "model.intermediate_size": 128, "training.steps": 10, "training.global_batch_tokens": 4096,
    "optimizer.lr": 5e-3, "optimizer.warmup_steps": 3, "optimizer.decay_steps": 9,
    "log.every": 1, "evaluation.every": 0, "evaluation.max_rows": 4, "checkpoint.every": 0,
}  # fmt: skip


def environment(ranks: int) -> dict:
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))  # others use theirs
    return {
        **os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def run(*words, **options) -> subprocess.CompletedProcess:
    """A command of the repository, run from its top; its text output is captured."""
    return subprocess.run([str(w) for w in words], cwd=ROOT, text=True, capture_output=True, timeout=600, **options)


def python(*words, **options) -> subprocess.CompletedProcess:
    return run(sys.executable, *words, **options)


def other_packages(name: str) -> dict:
    """The environment of a process that finds the packages of tests/others/NAME.txt first; tests/run.sh installs them.

    Skips the test where they are missing, except in continuous integration: there that is a failure.
    """
    place = Path(os.environ.get("OTHER_PACKAGES", ROOT / ".venv/others")) / name
    if not place.is_dir():
        missing = f"the packages of tests/others/{name}.txt are not in {place}: bash tests/run.sh installs them"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    path = os.pathsep.join([str(place.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment(1) | {"PYTHONPATH": path}


def launch_words(ranks: int, output, shards, stage: int | str = 1, **settings) -> list[str]:
    """What `deepspeed … --module amplify_ds.train …` runs on this machine; settings: section__field=value.

    One rank needs no launcher. More have DeepSpeed's launcher of a machine, without the runner in front of it, which
    only adds seconds here; tests of launch/train.sh have both.
    """
    words = [sys.executable, "-m"]
    if ranks > 1:
        world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
        words += [
            "deepspeed.launcher.launch", f"--world_info={world}", "--master_addr", "127.0.0.1", "--master_port",
            29600 + os.getpid() % 1000, "--no_local_rank", "--log_level", "error", "--module",
        ]  # fmt: skip
    return [*map(str, words), "amplify_ds.train", *training_words(output, shards, stage, **settings)]


def training_words(output, shards, stage: int = 1, **settings) -> list[str]:
    """The part of it that is for amplify_ds.train."""
    flags = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
    words = [
        "--recipe", "tiny", "--deepspeed_config", ROOT / f"ds_configs/zero{stage}.json",
        "--data.train", shards["train"],
        "--data.validation", f"held_out={shards['validation']}", "--output", output,
    ]  # fmt: skip
    return [str(w) for w in (*words, *(part for key, value in flags.items() for part in (_flag(key), value)))]


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-') if key in ('init_from', 'skip_rows') else key}"


def train(ranks: int, output, shards, stage: int = 1, **settings) -> subprocess.CompletedProcess:
    return run(*launch_words(ranks, output, shards, stage, **settings), env=environment(ranks))


def train_with_faults(faults: dict, ranks: int, output, shards, stage: int = 1, **settings):
    """The same with faults, see faulty_train.py."""
    words = launch_words(ranks, output, shards, stage, **settings)
    words[words.index("amplify_ds.train")] = "faulty_train"
    faulty = {"FAULTS": json.dumps(faults), "PYTHONPATH": before_path(Path(__file__).parent)}
    return run(*words, env=environment(ranks) | faulty)


def before_path(folder) -> str:
    """PYTHONPATH with this folder in front."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def losses(output) -> dict[int, float]:
    """{step: training loss} from the TensorBoard events of a run."""
    from amplify_ds.plot import read_scalars

    return dict(zip(*read_scalars(Path(output))["train/loss"]))


EVERY_THREE = {"checkpoint__every": 3, "checkpoint__keep_last": 9}


@pytest.fixture(scope="session")
def uninterrupted(shards, tmp_path_factory):
    """A whole run on two ranks, to compare interrupted ones with; beside it the rows that it read (recording)."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    recording = {"RECORD": str(output.with_suffix(".rows")), "PYTHONPATH": before_path(ROOT / "tests/recording")}
    result = run(*launch_words(2, output, shards, 1, **EVERY_THREE), env=environment(2) | recording)
    assert result.returncode == 0, result.stderr
    return output


def final_tensors(output: Path) -> dict:
    from safetensors.torch import load_file

    folder = output / "checkpoints/step-00000010"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "optimizer.safetensors")}


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> dict[str, Path]:
    """Shards of the first bundled proteins, in rows of 1,024 tokens and windows of at most 96."""
    place = tmp_path_factory.mktemp("shards")
    for name, count in (("train", 400), ("validation", 30)):
        with dnaio.open(EXAMPLE / f"{name}.fasta.gz") as reader, open(place / f"{name}.fasta", "w") as file:
            for _, record in zip(range(count), reader):
                file.write(f">{record.name}\n{record.sequence}\n")
        result = python(
            "data_prep/build_shards.py", "--input", place / f"{name}.fasta", "--output", place / name,
            "--max-length", 96, "--row-tokens", 1024,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    return {name: place / name for name in ("train", "validation")}
