"""The launch scripts, each run on CPU ranks with a small model. srun and scontrol are fakes that say so."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amplify_ds.training import checkpoint
from tests.support.paths import ROOT
from tests.support.training import SMALL

DATA_PREP = sorted(path.name for path in (ROOT / "launch").glob("*.s*h*") if path.suffix in (".sh", ".sbatch"))
OWN_HELP = [name for name in DATA_PREP if name not in ("environment.sh", "pretrain_options.sh")]
SRUN = """#!/usr/bin/env bash
# A fake of SLURM's srun, for one machine: runs the command here as task 0.
while [[ $1 = --* ]]; do shift; done
export SLURM_NODEID=0
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
# A fake of SLURM's scontrol: one machine; writes down what else it is asked.
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >>"$(dirname "$0")/asked"; fi
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with this interpreter's environment in the place of its own, so that nothing is installed."""
    top = tmp_path_factory.mktemp("copy") / "repository"
    shutil.copytree(
        ROOT, top, ignore=lambda folder, names: [n for n in names if n in (".git", ".venv", "runs", "__pycache__")]
    )
    (top / ".venv/bin").mkdir(parents=True)
    (top / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    own = '. <(grep ^wanted= launch/environment.sh) && echo "$wanted"'  # what the script looks for
    wanted = subprocess.run(["bash", "-c", own], cwd=top, capture_output=True, check=True)
    (top / ".venv/complete").write_bytes(wanted.stdout)
    return top


def environment(top, **own):
    return {
        **os.environ,
        "PYTHONPATH": str(top),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **own,
    }


def small(shards, output, steps=2):
    """Options that make a recipe small: they stand behind the script's own and must win."""
    flags = {**SMALL, "training.steps": steps, "training.micro_batch_rows": 1, "data.workers": 0}
    words = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    return [*words, "--data.train", str(shards["train"]), "--output", str(output)]


def bash(top, *words, **own):
    return subprocess.run(
        ["bash", *map(str, words)], cwd=top, env=environment(top, **own), text=True, capture_output=True
    )


@pytest.mark.parametrize("script", DATA_PREP)
def test_bash_understands_it(script):
    assert subprocess.run(["bash", "-n", ROOT / "launch" / script], capture_output=True).stderr == b""


@pytest.mark.parametrize("script", OWN_HELP)
def test_help(copy, script):
    shown = bash(copy, f"launch/{script}", "--help")
    assert shown.returncode == 0 and f"launch/{script}" in shown.stdout, shown.stderr


def test_the_120m_made_small_trains_on_two_ranks(copy, shards, tmp_path):
    output = tmp_path / "run"
    result = bash(copy, "launch/pretrain_120m.sh", "--ranks", 2, *small(shards, output))
    assert result.returncode == 0, result.stdout + result.stderr
    done = json.loads((output / "result.json").read_text())
    assert (done["steps"], done["devices"]) == (2, 2)
    told = json.dumps(json.loads((output / "run.json").read_text()))
    assert '"hidden_size": 64' in told and '"weight_decay": 0.01' in told, "ours win, the rest is the recipe's"


@pytest.mark.parametrize(
    "size, devices, accumulated", [("120m", 16, 2), ("120m", 32, 1), ("350m", 16, 2), ("350m", 32, 1), ("350m", 1, 32)]
)
def test_published_batch_on_any_power_of_two(copy, tmp_path, size, devices, accumulated):
    """160 rows of 8,192 tokens; the words are those that reach launch/train.sh."""
    top = tmp_path / "top"
    (top / "launch").mkdir(parents=True)
    for name in (f"pretrain_{size}.sh", "pretrain_options.sh"):
        shutil.copy(ROOT / "launch" / name, top / "launch")
    (top / "launch/train.sh").write_text('# A fake: prints its words.\nprintf "%s\\n" "$@"\n')
    result = bash(top, f"launch/pretrain_{size}.sh", "--hostfile", "my hosts", "--restarts", 3)
    launcher, _, training = result.stdout.partition("\n--\n")
    assert launcher.splitlines() == ["--hostfile", "my hosts", "--restarts", "3"]
    from amplify_ds.train import parse
    from amplify_ds.training.derived import split_batch

    arguments, run = parse(training.splitlines())
    assert arguments.recipe == size.upper() and arguments.output == f"runs/{size.upper()}"
    assert run.training.global_batch_tokens == 160 * 8192 and run.training.steps == 1_000_000
    assert [source.partition(":")[2] for source in run.data.train] == ["15134", "136", "1"]
    cut = split_batch(run, 8192, 0, devices)
    assert (cut.global_rows, cut.micro_rows, cut.accumulation) == (160, 5, accumulated)


@pytest.fixture
def slurm(copy, tmp_path):
    """Variables of a job on one machine, and the fakes in front of PATH."""
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (fakes / name).write_text(content)
        (fakes / name).chmod(0o755)
    return {
        "PATH": f"{fakes}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(copy),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_PER_TASK": "1",
    }


def test_the_350m_made_small_under_slurm_saves_requeues_and_resumes(copy, shards, tmp_path, slurm, monkeypatch):
    output, script = tmp_path / "run", copy / "launch/slurm.sbatch"
    checked = tmp_path / "checked"
    # A fake of the preflight: writes down its words. The true one is tested with srun in test_preflight.py.
    monkeypatch.setenv("CHECKED", str(checked))
    (copy / "launch/preflight.sh").write_text('echo "$@" >>"$CHECKED"\n')
    words = ["350m", *small(shards, output, 4000), "--checkpoint.every", "10"]
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(["bash", script, *words], env=environment(copy, **slurm), stdout=log, stderr=log)
        while not checkpoint.listing(output) and job.poll() is None:
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        code = job.wait()
    said = (tmp_path / "log").read_text()
    assert code == 75, said
    port = 20000 + os.getpid() % 10000
    assert checked.read_text() == f"{output}/.hostfile --srun --master_addr 127.0.0.1 --master_port {port}\n"
    assert (output / ".hostfile").read_text() == "127.0.0.1 slots=1\n"
    assert (tmp_path / "fakes/asked").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    done = json.loads((output / "stopped.json").read_text())["step"]
    assert 10 <= done < 4000

    last = checkpoint.listing(output)[-1].name
    again = bash(copy, script, *words, "--training.steps", done + 1, **slurm, SLURM_RESTART_COUNT="1")
    assert again.returncode == 0 and f"continuing from {output}/checkpoints/{last}" in again.stderr, again.stderr
    assert json.loads((output / "result.json").read_text())["steps"] == done + 1
    assert len((tmp_path / "fakes/asked").read_text().splitlines()) == 1, "what is complete is not requeued"


@pytest.mark.parametrize("code, restarts, requeued", [(70, 0, True), (69, 10, False), (1, 0, False), (0, 0, False)])
def test_slurm_requeues_after_a_loss_but_not_for_ever(copy, tmp_path, slurm, code, restarts, requeued):
    top = tmp_path / "top"
    (top / "launch").mkdir(parents=True)
    shutil.copy(copy / "launch/slurm.sbatch", top / "launch")
    (top / "launch/preflight.sh").write_text("# A fake: all is well.\n")
    (top / "launch/pretrain_120m.sh").write_text(
        f"# A fake: shows its words, ends with a code.\necho $*\nexit {code}\n"
    )
    own = {**slurm, "SLURM_SUBMIT_DIR": str(top), "SLURM_RESTART_COUNT": str(restarts)}
    result = bash(top, "launch/slurm.sbatch", "120m", "--output=here", "--optimizer.lr", "5e-4", **own)
    assert result.returncode == code and (tmp_path / "fakes/asked").exists() == requeued, result.stderr
    assert "--no_ssh --node_rank 0 --master_addr 127.0.0.1 --master_port" in result.stdout
    assert result.stdout.endswith("-- --output here --output=here --optimizer.lr 5e-4\n")
    assert (top / "here/.hostfile").read_text() == "127.0.0.1 slots=1\n"


def test_slurm_refuses_what_it_does_not_know(copy, slurm):
    result = bash(copy, "launch/slurm.sbatch", "3b", **slurm)
    assert result.returncode == 2 and "120m or 350m" in result.stderr
