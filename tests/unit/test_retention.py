"""Retention of checkpoints: no sound one is lost, whatever else is in the directory."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplify_ds.training import checkpoint
from amplify_ds.training.retention import Checkpoints
from tests.support.small_checkpoint import state, triples


def opened(run: Path, keep_last: int = 3, keep_every: int = 0, lines: list | None = None) -> Checkpoints:
    return Checkpoints(run, keep_last, keep_every, ([] if lines is None else lines).append)


def write(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.write(triples(step), state(step))


def names(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def damage(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "model.safetensors").write_bytes(data)


def test_the_last_ones_and_every_mth_stay(tmp_path):
    write(opened(tmp_path, keep_last=2, keep_every=30), *range(10, 80, 10))
    assert names(tmp_path) == [f"step-{step:08d}" for step in (30, 60, 70)]


def test_three_damaged_ones_do_not_push_out_the_sound_ones(tmp_path):
    """The run had saved 40, 80 … 240; 160 and later are damaged; it continues from 120 and stops at 129."""
    write(opened(tmp_path, keep_last=6), 40, 80, 120, 160, 200, 240)
    for step in (160, 200, 240):
        damage(tmp_path / f"checkpoints/step-{step:08d}")
    lines = []
    again = opened(tmp_path, keep_last=3, lines=lines)
    assert again.find().step == 120
    assert not lines and "step-00000240" in names(tmp_path), "`find` changes nothing"
    again.set_damaged_aside()
    assert len(lines) == 3 and all("was altered" in line and ".damaged" in line for line in lines)
    write(again, 129)
    assert again.newest.path.name == "step-00000129"
    assert [n for n in names(tmp_path) if not n.endswith(".damaged")] == [f"step-{step:08d}" for step in (80, 120, 129)]
    assert [n for n in names(tmp_path) if n.endswith(".damaged")] == [
        f"step-{step:08d}.damaged" for step in (160, 200, 240)
    ]


def test_damage_that_comes_later_is_seen_before_anything_older_goes(tmp_path):
    checkpoints = opened(tmp_path, keep_last=2)
    write(checkpoints, 10, 20)
    damage(tmp_path / "checkpoints/step-00000020")
    write(checkpoints, 30)
    assert names(tmp_path) == ["step-00000010", "step-00000020.damaged", "step-00000030"]


def test_when_all_are_damaged_nothing_is_renamed_and_nothing_starts_anew(tmp_path):
    write(opened(tmp_path), 10, 20)
    for step in (10, 20):
        damage(tmp_path / f"checkpoints/step-{step:08d}")
    for _ in range(2):
        with pytest.raises(checkpoint.Damaged, match="No checkpoint of .* is sound. Restore one"):
            opened(tmp_path).find()
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("kind", ["dangling", "file", "empty", "loop"])
def test_an_entry_that_is_not_a_checkpoint_is_renamed(tmp_path, kind):
    write(opened(tmp_path), 10)
    odd = tmp_path / "checkpoints/step-00000012"
    make = {
        "dangling": lambda: odd.symlink_to(tmp_path / "nowhere"),
        "file": lambda: odd.write_text("x"),
        "empty": odd.mkdir,
        "loop": lambda: odd.symlink_to(odd),
    }
    make[kind]()
    again = opened(tmp_path)
    assert again.find().step == 10
    again.set_damaged_aside()
    write(again, 12)
    assert again.newest.path == odd and checkpoint.newest(tmp_path).step == 12
    assert names(tmp_path) == ["step-00000010", "step-00000012", "step-00000012.damaged"]


def test_an_entry_with_the_name_of_a_new_checkpoint_is_kept(tmp_path):
    checkpoints = opened(tmp_path)
    write(checkpoints, 10)
    shutil.copytree(tmp_path / "checkpoints/step-00000010", tmp_path / "checkpoints/step-00000020")
    (tmp_path / "checkpoints/step-00000020/mine.txt").write_text("precious")
    write(checkpoints, 20)
    assert (tmp_path / "checkpoints/step-00000020.damaged/mine.txt").read_text() == "precious"
    assert checkpoint.newest(tmp_path).step == 20


def test_a_newer_format_is_refused_and_stays(tmp_path):
    write(opened(tmp_path), 10, 20)
    newer(tmp_path / "checkpoints/step-00000020")
    with pytest.raises(checkpoint.Unsupported, match="format 99"):
        opened(tmp_path).find()
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def newer(path: Path) -> None:
    (path / "state.json").write_text('{"format": 99, "what": "this version cannot know"}')


def content(path: Path) -> dict:
    """Return the content of a file, link or directory as {relative path: bytes or link target}."""
    if path.is_symlink():
        return {"": os.readlink(path)}
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


KINDS = ("sound", "damaged", "truncated", "empty", "file", "newer", "foreign", "symlink", "dangling")


@settings(max_examples=int(os.environ.get("EXAMPLES", 60)))
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8),
    keep_last=st.integers(1, 4),
    keep_every=st.sampled_from([0, 20, 30]),
    further=st.integers(0, 3),
)
def test_a_sound_checkpoint_always_survives(kinds, keep_last, keep_every, further):
    """Make entries 10, 20 … of random kinds, open the run, write some more checkpoints, and check what is left."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        sound = lay_out(run, kinds)
        before = {name: content(run / "checkpoints" / name) for name in names(run)}
        checkpoints = opened(run, keep_last, keep_every)
        try:
            newest = checkpoints.find()
        except checkpoint.Damaged:
            assert not sound
            newest = None
        except checkpoint.Unsupported:
            newest = None
        unchanged = {name: content(run / "checkpoints" / name) for name in names(run)}
        assert unchanged == before, "`find` changes nothing"
        if newest is None:
            return
        checkpoints.set_damaged_aside()
        last = 10 * len(kinds)
        write(checkpoints, *(last + 10 * (i + 1) for i in range(further)))
        left = {name: content(run / "checkpoints" / name) for name in names(run)}

        written = [last + 10 * (i + 1) for i in range(further)]
        sound_steps = sorted([step for step, kind in zip(sound, sound.values()) if kind == "sound"] + written)
        expected = sound_steps if not further else sound_steps[-keep_last:]
        for step in expected:
            name = f"step-{step:08d}"
            assert name in left, "one of the newest sound checkpoints is gone"
            assert step in written or left[name] == before[name]
        assert checkpoint.verify(checkpoint.open_checkpoint(checkpoints.newest.path))
        for number, kind in enumerate(kinds, 1):
            name = before_name(number, kind)
            if kind in ("newer", "foreign", "symlink"):
                assert left[name] == before[name], f"{kind} was touched"
            elif kind != "sound" and before[name] not in (left.get(name), left.get(f"{name}.damaged")):
                newer_ones = [step for step in sound_steps if step > 10 * number]
                assert kind == "damaged" and len(newer_ones) >= keep_last, "only unread, deleted ones"
        for step in sound_steps:
            if keep_every and step % keep_every == 0:
                assert f"step-{step:08d}" in left


def before_name(number: int, kind: str) -> str:
    return f"step-{number}0-copy" if kind == "foreign" else f"step-{10 * number:08d}"


def lay_out(run: Path, kinds: list[str]) -> dict[int, str]:
    """Make an entry of each kind; return {step: kind} of those from which a run can continue."""
    (run / "checkpoints").mkdir(parents=True)
    for number, kind in enumerate(kinds, 1):
        step = 10 * number
        path = run / "checkpoints" / f"step-{step:08d}"
        if kind in ("file", "dangling", "empty"):
            {"file": path.touch, "dangling": lambda path=path: path.symlink_to("nowhere"), "empty": path.mkdir}[kind]()
            continue
        checkpoint.write(run, triples(step), state(step))
        if kind == "damaged":
            damage(path)
        elif kind == "truncated":
            os.truncate(path / "optimizer.safetensors", 40)
        elif kind == "newer":
            newer(path)
        elif kind == "foreign":
            path.rename(path.with_name(before_name(number, kind)))
        elif kind == "symlink":
            elsewhere = run.parent / f"elsewhere-{step}"
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
    return {10 * number: kind for number, kind in enumerate(kinds, 1) if kind in ("sound", "symlink")}
