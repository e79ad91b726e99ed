"""Resumed runs against uninterrupted ones; checkpoints that do not depend on ranks or ZeRO stage."""

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.errors import AmplifyError
from amplify_ds.hub.folder import read_source
from amplify_ds.hub.others import scorable
from amplify_ds.training import checkpoint
from tests.support.commands import environment, python
from tests.support.paths import ROOT
from tests.support.small_checkpoint import state, triples
from tests.support.training import EVERY_THREE, final_tensors, launch_words, losses, train


def step_of_newest(output: Path) -> int:
    newest = checkpoint.newest(output)
    return newest.step if newest else 0


def ranks_below(pid: int) -> list[int]:
    """Return the processes that the launcher has started for training, without its helpers, parents first."""
    below = psutil.Process(pid).children(recursive=True)
    return [p.pid for p in below if {"deepspeed.launcher.launch", "amplify_ds.train"} & set(p.cmdline())]


def wait_for_lock(output: Path) -> None:
    """Wait until no process holds the run, as a user does before starting the command again."""
    import fcntl

    with open(output / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.mark.parametrize("stage, ranks", [(0, 1), (2, 2), (3, 2), (1, 1)])
def test_another_stage_or_number_of_ranks_continues(uninterrupted, shards, tmp_path, stage, ranks):
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    (output / "result.json").unlink()
    for step in (6, 9, 10):
        shutil.rmtree(output / f"checkpoints/step-{step:08d}")
    result = train(ranks, output, shards, stage, **EVERY_THREE)
    assert result.returncode == 0 and "3 of 10 steps are done" in result.stderr, result.stderr
    expected, resumed = losses(uninterrupted), losses(output)
    assert list(resumed) == list(range(1, 11))
    assert list(resumed.values()) == pytest.approx(list(expected.values()), abs=1e-5)
    tensors, expected_tensors = final_tensors(output), final_tensors(uninterrupted)
    for name in expected_tensors:
        torch.testing.assert_close(
            tensors[name], expected_tensors[name], atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("stage", [1, "2_overlap"])
def test_bfloat16_resumes_to_the_bit(shards, tmp_path, stage):
    settings = {"training__precision": "bf16", "training__steps": 3, "checkpoint__every": 2, "checkpoint__keep_last": 9}
    settings["training__global_batch_tokens"] = 2048  # bf16 is slow on a CPU
    assert train(2, tmp_path / "whole", shards, stage, **settings).returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000003")
    (tmp_path / "resumed/result.json").unlink()
    again = train(2, tmp_path / "resumed", shards, stage, **settings)
    assert again.returncode == 0 and "2 of 3 steps are done" in again.stderr, again.stderr
    whole, resumed = (
        load_file(tmp_path / name / "checkpoints/step-00000003/model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "resumed")


def write(run: Path, step: int) -> Path:
    return checkpoint.write(run, triples(step), state(step)).path


def test_a_half_written_checkpoint_is_never_seen(tmp_path):
    write(tmp_path, 10)
    partial = tmp_path / "checkpoints/.step-00000020.partial"
    partial.mkdir()
    save_file({"a": torch.zeros(3)}, partial / "model.safetensors")
    assert checkpoint.newest(tmp_path).step == 10
    write(tmp_path, 20)
    assert checkpoint.newest(tmp_path).step == 20 and not partial.exists()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = write(tmp_path, 10)
    finally:
        os.umask(before)
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(names, mode)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_the_state_is_found_or_changes_nothing(tmp_path):
    path = write(tmp_path, 9)
    right = checkpoint.open_checkpoint(path).state
    whole = (path / "state.json").read_bytes()
    unchanged = 0
    for bit in range(8 * len(whole)):
        (path / "state.json").write_bytes(flipped(whole, bit))
        try:
            assert checkpoint.open_checkpoint(path).state == right, bit
            unchanged += 1
        except checkpoint.Damaged:
            pass
    assert unchanged < len(whole) / 10, "only flips of white space may change nothing"


def old_format(path: Path, **changes) -> bytes:
    """Return the state in the previous format, without its checksum. The value "removed" removes an entry."""
    content = json.loads((path / "state.json").read_text())
    del content["state_sha256"]
    content |= {"format": 2} | changes
    return json.dumps({key: value for key, value in content.items() if value != "removed"}).encode()


def test_the_previous_format_is_read(tmp_path):
    path = write(tmp_path, 9)
    (path / "state.json").write_bytes(old_format(path))
    assert checkpoint.newest(tmp_path).step == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"files": "removed"},
        {"files": {"../../secret": "0" * 64}},
        {"files": {"model.safetensors": "x"}},
        {"step": "9"},
        {"step": True},
        {"step": 8},
        {"step": -9},
        {"progress": {}},
        {"progress": "removed"},
        {"skips": {}},
        {"binding": 3},
        {"origin": "somewhere"},
        {"format": "removed"},
        {"format": "2"},
        {"format": 3},
    ],
)
def test_a_state_of_another_shape_is_damage(tmp_path, changes):
    path = write(tmp_path, 9)
    (path / "state.json").write_bytes(old_format(path, **changes))
    with pytest.raises(checkpoint.Damaged, match="state.json|not a complete"):
        checkpoint.open_checkpoint(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"a":' * 100_000, b"[" * 10**6, b'{"step": ' + b"9" * 10**6 + b"}"],
)
def test_a_state_that_is_no_state_is_damage(tmp_path, text):
    path = write(tmp_path, 9)
    (path / "state.json").write_bytes(text)
    with pytest.raises(checkpoint.Damaged, match="step-00000009: not a complete checkpoint"):
        checkpoint.open_checkpoint(path)


def test_a_newer_format_is_not_damage(tmp_path):
    path = write(tmp_path, 9)
    content = json.loads((path / "state.json").read_text()) | {"format": 4}
    for has_checksum in (True, False):  # a later version may compute its checksum differently
        content.pop("state_sha256", None)
        if has_checksum:
            text = json.dumps(dict(sorted(content.items())), sort_keys=True)
            content["state_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (path / "state.json").write_text(json.dumps(content))
        with pytest.raises(checkpoint.Unsupported, match="format 4, this version of amplify_ds reads 2 and 3"):
            checkpoint.newest(tmp_path)


def test_using_a_run_whose_newest_checkpoint_is_damaged_is_an_error(uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    weights = run / "checkpoints/step-00000010/model.safetensors"
    weights.write_bytes(flipped(weights.read_bytes(), 8 * weights.stat().st_size - 20))
    with pytest.raises(AmplifyError, match="was altered.*newest checkpoint.*give its path: .*step-00000009"):
        read_source(run)
    assert read_source(run / "checkpoints/step-00000009").history["step"] == 9
    assert len(os.listdir(run / "checkpoints")) == 4, "nothing was renamed: this process does not hold the run"


def test_evaluate_scores_the_checkpoint_that_it_has_named_and_verified_once(uninterrupted, tmp_path, monkeypatch):
    """Models are opened first and loaded one by one; meanwhile training may save and delete checkpoints."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    ninth, tenth = (run / f"checkpoints/step-{step:08d}" for step in (9, 10))
    tenth.rename(tmp_path / "later")
    digest, read = checkpoint.sha256, []
    monkeypatch.setattr(checkpoint, "sha256", lambda path: read.append(path) or digest(path))
    model = scorable(str(run))
    (tmp_path / "later").rename(tenth)
    logits = model.load(torch.device("cpu"))
    assert model.step == 9 and sorted(read) == [ninth / "model.safetensors", ninth / "optimizer.safetensors"]
    reference = ReferenceAMPLIFY(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128)
    ids = torch.arange(3, 27)[None]
    for folder, same in ((ninth, True), (tenth, False)):
        reference.load_state_dict(load_file(folder / "model.safetensors"))
        assert torch.allclose(logits(input_ids=ids), reference(ids), atol=1e-5) is same
    shutil.rmtree(ninth)
    with pytest.raises(checkpoint.Damaged, match=r"step-00000009: not a complete checkpoint .*No such file"):
        model.load(torch.device("cpu"))


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = write(tmp_path, 9)

    def refuse(name, *rest, **options):  # a real permission would not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AmplifyError, match="state.json: cannot be read: Permission denied") as refused:
        checkpoint.open_checkpoint(path)
    assert not isinstance(refused.value, checkpoint.Damaged)


def test_the_list_of_checkpoints(uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    whole = python("-m", "amplify_ds.checkpoints", run, "--verify")
    assert whole.returncode == 0, whole.stderr
    lines = whole.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [f"step-{step:08d}" for step in (3, 6, 9, 10)]
    assert all("verified" in line for line in lines)
    scores = json.loads((run / "result.json").read_text())["evaluations"]
    [last] = [score["loss"] for score in scores if score["step"] == 10 and score["protocol"] == "mask_only"]
    assert f"held_out {last:.4f}" in lines[-1]
    (run / "checkpoints/.step-00000012.partial").mkdir()
    os.truncate(run / "checkpoints/step-00000006/optimizer.safetensors", 5)
    listed = python("-m", "amplify_ds.checkpoints", run)
    assert listed.returncode == 1 and "incomplete" in listed.stdout
    assert [line.split()[0] for line in listed.stdout.splitlines() if "damaged" in line] == ["step-00000006"]
    assert "not a run directory" in python("-m", "amplify_ds.checkpoints", tmp_path).stderr


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path):
    """A file size limit stands in for the full disk: both make write() fail half way."""
    write(tmp_path, 10)
    program = (
        "import resource, signal, torch\n"
        "from pathlib import Path; from amplify_ds.training import checkpoint; from amplify_ds.errors import command\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "big = [('a', torch.zeros(100_000), {})]\n"
        f"command(lambda: checkpoint.write(Path({str(tmp_path)!r}), big, {{'step': 20}}) and 0)\n"
    )
    result = python("-c", program)
    assert result.returncode == 1 and "could not be written" in result.stderr and "Traceback" not in result.stderr
    assert checkpoint.newest(tmp_path).step == 10
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000010"]


def test_a_disk_that_fills_up_during_a_save_ends_the_run_and_it_continues(uninterrupted, shards, tmp_path):
    """After the first checkpoint no file of rank 0 may grow beyond 100 kB: the next save fails in the background."""
    output = tmp_path / "run"
    process = subprocess.Popen(
        launch_words(2, output, shards, 1, **EVERY_THREE),
        cwd=ROOT,
        env=environment(2),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while step_of_newest(output) == 0 and process.poll() is None:
        time.sleep(0.005)
    limited = 0
    for pid in ranks_below(process.pid):
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
            limited += 1
        except ProcessLookupError:
            pass
    _, error = process.communicate(timeout=300)
    assert limited and process.returncode != 0, error
    assert "could not be written" in error and "Older checkpoints are intact" in error and "Traceback" not in error
    assert 0 < step_of_newest(output) < 10
    wait_for_lock(output)
    result = train(2, output, shards, 1, **EVERY_THREE)
    assert result.returncode == 0, result.stderr
    assert losses(output) == losses(uninterrupted)


def test_resume_never_and_resume_from_a_path(uninterrupted, shards, tmp_path):
    refused = train(1, uninterrupted, shards, 1, **EVERY_THREE, resume="never")
    assert refused.returncode != 0 and "which --resume never does not continue" in refused.stderr
    older = uninterrupted / "checkpoints/step-00000009"
    result = train(2, tmp_path / "run", shards, 1, **EVERY_THREE, resume=older)
    assert result.returncode == 0, result.stderr
    tensors, expected = final_tensors(tmp_path / "run"), final_tensors(uninterrupted)
    assert all(torch.equal(tensors[k], expected[k]) for k in expected)
    again = train(1, tmp_path / "run", shards, 1, **EVERY_THREE, resume=older)
    assert again.returncode == 0 and "already complete" in again.stdout, "the same command continues its own run"
    behind = train(1, tmp_path / "run", shards, 1, **{**EVERY_THREE, "training__steps": 5})
    assert behind.returncode != 0 and "has done 10 steps, but training.steps is 5" in behind.stderr


def test_a_start_that_failed_does_not_block_its_directory(shards, tmp_path):
    failed = train(1, tmp_path / "run", shards, resume=tmp_path / "nowhere", training__steps=2)
    assert failed.returncode != 0 and "no such checkpoint directory" in failed.stderr
    assert "Traceback" not in failed.stderr
    fixed = train(1, tmp_path / "run", shards, training__steps=2, optimizer__lr=1e-3)
    assert fixed.returncode == 0, fixed.stderr


def test_two_trainers_never_share_a_run(shards, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = train(1, tmp_path / "run", shards)
    assert result.returncode != 0 and "another process is training this run" in result.stderr


def test_a_directory_of_other_files_is_refused(shards, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    result = train(1, tmp_path, shards)
    assert result.returncode != 0 and "contains other files (thesis.tex)" in result.stderr
    assert os.listdir(tmp_path) == ["thesis.tex"]
