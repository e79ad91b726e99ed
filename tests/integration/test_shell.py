"""What is printed to be pasted: every `next:` line of a command whose paths hold a blank and both quotes."""

import ast
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from amplify_ds.shell import command_line
from tests.support.commands import environment, python
from tests.support.needs import needs_mmseqs
from tests.support.paths import EXAMPLE, ROOT
from tests.support.training import training_words


def next_lines(*words, **options) -> list[str]:
    result = python(*words, env=environment(1), **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.removeprefix("next: ") for line in result.stdout.splitlines() if line.startswith("next: ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Its name holds what a shell would read otherwise."""
    found = tmp_path_factory.mktemp("shell") / """a 'b' "c" $d;e & *"""
    found.mkdir()
    return found


@pytest.fixture(scope="module")
def run(place, shards):
    """A run of two steps, and the commands that training names at its end."""
    output = place / "run"
    words = training_words(output, shards, 1, training__steps=2, optimizer__decay_steps=20)
    return output, next_lines("-m", "amplify_ds.train", *words)


def test_words_arrive_at_a_shell_as_they_are():
    words = ["a b", "c'd", 'e"f', "$g", "`h`", "*", "~", "", "ü", "-x", "i\nj"]
    shown = subprocess.run(
        ["sh", "-c", command_line(sys.executable, "-c", "import sys; print(sys.argv[1:])", *words)],
        text=True,
        capture_output=True,
    )
    assert ast.literal_eval(shown.stdout) == words, shown.stderr


def test_training_names_commands_that_run(run):
    output, lines = run
    words = [shlex.split(line) for line in lines]
    assert words == [
        ["python", "-m", "amplify_ds.plot", str(output)],
        ["python", "-m", "amplify_ds.export", str(output), "FOLDER"],
        ["tensorboard", "--logdir", str(output)],
    ]
    shown = subprocess.run(
        ["bash", "-c", lines[0].replace("python", shlex.quote(sys.executable), 1)],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert shown.returncode == 0 and (output / "plots/training_loss.png").exists(), shown.stderr
    assert shlex.split(shown.stdout.splitlines()[-1]) == ["next:", "tensorboard", "--logdir", str(output)]


def test_export_and_embed_name_paths_that_python_reads(run, place):
    [line] = next_lines("-m", "amplify_ds.export", run[0], place / "hf")
    call = ast.parse(line, mode="eval").body
    assert call.args[0].value == str(place / "hf")
    [line] = next_lines("-m", "amplify_ds.export", run[0], place / "te", "--layout", "te")
    assert shlex.split(line)[3:5] == ["--model", str(place / "te")]
    fasta = place / "in.fasta"
    fasta.write_text(">a\nMKV\n")
    for suffix in (".npz", ".parquet"):
        [line] = next_lines(
            "-m", "amplify_ds.embed", "--model", place / "hf", "--input", fasta, "--output", place / f"x{suffix}"
        )
        code = line.partition("): ")[0] + ")"
        assert ast.parse(code, mode="eval").body.args[0].value == str(place / f"x{suffix}")


def test_shards_name_their_check(place):
    shutil.copy(EXAMPLE / "validation.fasta.gz", place / "in.fasta.gz")
    [line] = next_lines("data_prep/build_shards.py", "--input", place / "in.fasta.gz", "--output", place / "shards")
    assert shlex.split(line) == ["python", "data_prep/inspect_shards.py", str(place / "shards"), "--verify"]
    shown = subprocess.run(
        ["bash", "-c", line.replace("python", shlex.quote(sys.executable), 1)], cwd=ROOT, capture_output=True
    )
    assert shown.returncode == 0, shown.stderr


def test_outside_the_repository_shards_name_a_check_that_runs_there(place):
    """As with an installed package: no data_prep/ is where the command was given."""
    shutil.copy(EXAMPLE / "validation.fasta.gz", place / "in.fasta.gz")
    output = str(place / "installed")
    words = ["--input", "in.fasta.gz", "--output", output]
    [line] = next_lines("-m", "amplify_ds.build_shards", *words, cwd=place)
    assert shlex.split(line) == ["python", "-m", "amplify_ds.inspect_shards", output, "--verify"]
    shown = subprocess.run(
        ["bash", "-c", line.replace("python", shlex.quote(sys.executable), 1)],
        cwd=place,
        env=environment(1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "match their checksums" in shown.stdout, shown.stderr


@needs_mmseqs
def test_decontamination_names_its_own_inputs(place):
    shutil.copy(EXAMPLE / "validation.fasta.gz", place / "held out.fasta.gz")
    words = ["--train", place / "held out.fasta.gz", "--validation", place / "held out.fasta.gz"]
    [line] = next_lines("data_prep/decontaminate.py", *words, "--output", place / "similar.fasta")
    assert shlex.split(line)[1:] == [
        "data_prep/build_shards.py",
        "--input",
        str(words[1]),
        "--exclude",
        str(words[3]),
        os.path.realpath(place / "similar.fasta"),
        "--output",
        "SHARDS",
    ]


def test_the_table_of_the_quick_start(place, run):
    """Its last column, from the words of its title on."""
    for name in ("train", "validation"):
        shutil.copytree(run_shards(run[0], name), place / name)
    result = python(ROOT / "launch/summary.py", place, "1", env=environment(1))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    title = next(i for i, line in enumerate(lines) if "next (after" in line)
    begin = lines[title].index("next (after")
    words = [shlex.split(line[begin:]) for line in lines[title + 1 :]]
    assert words[0] == ["python", "data_prep/inspect_shards.py", str(place / "train"), "--verify"]
    assert words[1][3:] == ["--model", str(place / "run"), "--data", str(place / "validation")]
    assert words[4] == ["python", "launch/try_export.py", str(place / "export")]


def run_shards(run, name):
    from amplify_ds.training.run_directory import read_description

    path = read_description(run)["settings"]["data"][name][0]
    return path.partition("held_out=")[2] or path
