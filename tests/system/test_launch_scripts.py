"""The launch scripts, run on CPU ranks with a small model. srun and scontrol are fakes; test_slurm.py has real ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.training import SMALL

SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.s*h*") if path.suffix in (".sh", ".sbatch"))
SCRIPTS_WITH_HELP = [name for name in SCRIPTS if name not in ("environment.sh", "pretrain_options.sh")]
SRUN = """#!/usr/bin/env bash
# A fake of SLURM's srun, for one machine: runs the command here.
while [[ $1 = --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
# A fake of SLURM's scontrol: writes its arguments to a file.
if [ "$1" = show ]; then echo "   StartTime=x EndTime=Unknown"; else echo "$@" >>"$(dirname "$0")/calls"; fi
"""
TRAIN = """# A fake of launch/train.sh: prints its arguments; exits with CODE after the preflight.
echo "$*"
if [ "$1" != --preflight ]; then exit "$CODE"; fi
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Return a copy of the repository whose .venv is this interpreter's environment, so that nothing is installed."""
    top = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(
        ROOT, top, ignore=lambda folder, names: [n for n in names if n in (".git", ".venv", "runs", "__pycache__")]
    )
    (top / ".venv/bin").mkdir(parents=True)
    (top / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    checksum = '. <(grep ^requirements= launch/environment.sh) && echo "${requirements:?}"'  # as the script computes it
    result = subprocess.run(["bash", "-c", checksum], cwd=top, capture_output=True, check=True)
    (top / ".venv/complete").write_bytes(result.stdout)
    return top


def environment(top, **variables):
    return {
        **os.environ,
        "PYTHONPATH": str(top),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **variables,
    }


def small(shards, output, steps=2):
    """Return options that make a recipe small. They come after those of the script and must override them."""
    flags = {**SMALL, "training.steps": steps, "training.micro_batch_rows": 1, "data.workers": 0}
    options = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    return [*options, "--data.train", str(shards["train"]), "--output", str(output)]


def bash(top, *arguments, **variables):
    return subprocess.run(
        ["bash", *map(str, arguments)], cwd=top, env=environment(top, **variables), text=True, capture_output=True
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax(script):
    assert subprocess.run(["bash", "-n", ROOT / "launch" / script], capture_output=True).stderr == b""


@pytest.mark.parametrize("script", SCRIPTS_WITH_HELP)
def test_help(copy, script):
    result = bash(copy, f"launch/{script}", "--help")
    assert result.returncode == 0 and f"launch/{script}" in result.stdout, result.stderr


def test_a_small_120m_trains_on_two_ranks(copy, shards, tmp_path):
    output = tmp_path / "run"
    result = bash(copy, "launch/pretrain_120m.sh", "--ranks", 2, *small(shards, output))
    assert result.returncode == 0, result.stdout + result.stderr
    done = json.loads((output / "result.json").read_text())
    assert (done["steps"], done["devices"]) == (2, 2)
    run = json.dumps(json.loads((output / "run.json").read_text()))
    assert '"hidden_size": 64' in run and '"weight_decay": 0.01' in run, "options override the recipe"


@pytest.mark.parametrize(
    "size, devices, accumulated", [("120m", 16, 2), ("120m", 32, 1), ("350m", 16, 2), ("350m", 32, 1), ("350m", 1, 32)]
)
def test_published_batch_on_any_power_of_two(copy, tmp_path, size, devices, accumulated):
    """A step reads 160 rows of 8,192 tokens, with the arguments that reach launch/train.sh."""
    top = tmp_path / "top"
    (top / "launch").mkdir(parents=True)
    for name in (f"pretrain_{size}.sh", "pretrain_options.sh"):
        shutil.copy(ROOT / "launch" / name, top / "launch")
    (top / "launch/train.sh").write_text('# A fake: prints its arguments.\nprintf "%s\\n" "$@"\n')
    result = bash(top, f"launch/pretrain_{size}.sh", "--hostfile", "my hosts", "--restarts", 3)
    launcher, _, training = result.stdout.partition("\n--\n")
    assert launcher.splitlines() == ["--hostfile", "my hosts", "--restarts", "3"]
    from amplify_ds.train import parse
    from amplify_ds.training.derived import split_batch

    arguments, run = parse(training.splitlines())
    assert arguments.recipe == size.upper() and arguments.output == f"runs/{size.upper()}"
    assert run.training.global_batch_tokens == 160 * 8192 and run.training.steps == 1_000_000
    assert [source.partition(":")[2] for source in run.data.train] == ["15134", "136", "1"]
    split = split_batch(run, 8192, 0, devices)
    assert (split.global_rows, split.micro_rows, split.accumulation) == (160, 5, accumulated)


@pytest.fixture
def slurm(tmp_path):
    """Return a function that runs a copy of the script with fakes of SLURM and launch/train.sh, and returns the result.

    result.calls: the arguments of scontrol other than `show`.
    """
    top = tmp_path / "top"
    (top / "launch").mkdir(parents=True)
    (top / "fakes").mkdir()
    shutil.copy(ROOT / "launch/slurm.sbatch", top / "launch")
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (top / "fakes" / name).write_text(content)
        (top / "fakes" / name).chmod(0o755)
    (top / "launch/train.sh").write_text(TRAIN)

    def submitted(*arguments, **variables):
        job = {"SLURM_SUBMIT_DIR": str(top), "SLURM_JOB_ID": "7", "PATH": f"{top}/fakes:{os.environ['PATH']}"}
        result = bash(top, "launch/slurm.sbatch", *arguments, **job | variables)
        calls = top / "fakes/calls"
        result.calls = calls.read_text() if calls.exists() else ""
        calls.unlink(missing_ok=True)
        return result

    submitted.top = top
    return submitted


@pytest.mark.parametrize("code, requeued", [(75, True), (69, True), (70, True), (1, False), (0, False)])
def test_a_slurm_job_is_requeued_unless_it_is_complete_or_would_fail_again(slurm, code, requeued):
    result = slurm("train", "--output=here", CODE=str(code))
    assert result.returncode == code and (result.calls == "requeue 7\n") == requeued, result.stderr
    assert "--preflight --slurm -- --output here --output=here\n" in result.stdout
    assert "\n--slurm -- --output here --output=here\n" in result.stdout


def test_a_slurm_job_ends_after_three_starts_without_a_new_checkpoint(slurm):
    """A fake, because SLURM waits two minutes before each start."""

    def start(number):
        return slurm("train", "--output", "here", CODE="75", SLURM_RESTART_COUNT=str(number))

    assert [bool(start(number).calls) for number in range(2)] == [True, True]
    (slurm.top / "here/checkpoints/step-00000010").mkdir(parents=True)
    assert [bool(start(number).calls) for number in range(2, 6)] == [True, True, True, False]
    assert "three starts have brought no new checkpoint" in start(6).stdout


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["3b"], "expected 120m, 350m or train, found '3b'"),
        (["train", "--recipe", "tiny"], "--output RUN is missing"),
        (["120m", "--hostfile", "hosts"], "--hostfile: only options of amplify_ds.train go here"),
        (["120m", "--restarts=3"], "--restarts=3: only options of amplify_ds.train go here"),
        (["120m", "--ranks", "2", "--", "--recipe", "tiny"], "--ranks: only options"),
        (["120m", "--", "--recipe", "tiny"], "--: only options of amplify_ds.train go here"),
    ],
)
def test_the_slurm_script_refuses_other_options(slurm, arguments, text):
    result = slurm(*arguments)
    assert result.returncode == 2 and text in result.stderr and not result.stdout
    assert not (slurm.top / "runs").exists()
