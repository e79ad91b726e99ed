"""The `next:` lines of commands can be pasted into a shell, also with spaces and quotes in paths."""

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


def next_lines(*arguments, **options) -> list[str]:
    result = python(*arguments, env=environment(1), **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.removeprefix("next: ") for line in result.stdout.splitlines() if line.startswith("next: ")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory whose name has characters with a meaning for the shell."""
    path = tmp_path_factory.mktemp("shell") / """a 'b' "c" $d;e & *"""
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def run(directory, shards):
    """A run of two steps, and the commands that training prints at its end."""
    output = directory / "run"
    words = training_words(output, shards, 1, training__steps=2, optimizer__decay_steps=20)
    return output, next_lines("-m", "amplify_ds.train", *words)


def test_arguments_are_quoted_for_a_shell():
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


def test_export_and_embed_name_paths_that_python_reads(run, directory):
    [line] = next_lines("-m", "amplify_ds.export", run[0], directory / "hf")
    call = ast.parse(line, mode="eval").body
    assert call.args[0].value == str(directory / "hf")
    [line] = next_lines("-m", "amplify_ds.export", run[0], directory / "te", "--layout", "te")
    assert shlex.split(line)[3:5] == ["--model", str(directory / "te")]
    fasta = directory / "in.fasta"
    fasta.write_text(">a\nMKV\n")
    for suffix in (".npz", ".parquet"):
        [line] = next_lines(
            "-m",
            "amplify_ds.embed",
            "--model",
            directory / "hf",
            "--input",
            fasta,
            "--output",
            directory / f"x{suffix}",
        )
        code = line.partition("): ")[0] + ")"
        assert ast.parse(code, mode="eval").body.args[0].value == str(directory / f"x{suffix}")


def test_shards_name_their_check(directory):
    shutil.copy(EXAMPLE / "validation.fasta.gz", directory / "in.fasta.gz")
    [line] = next_lines(
        "data_prep/build_shards.py", "--input", directory / "in.fasta.gz", "--output", directory / "shards"
    )
    assert shlex.split(line) == ["python", "data_prep/inspect_shards.py", str(directory / "shards"), "--verify"]
    shown = subprocess.run(
        ["bash", "-c", line.replace("python", shlex.quote(sys.executable), 1)], cwd=ROOT, capture_output=True
    )
    assert shown.returncode == 0, shown.stderr


def test_outside_the_repository_shards_name_a_check_that_runs_there(directory):
    """As with an installed package, outside a clone of the repository."""
    shutil.copy(EXAMPLE / "validation.fasta.gz", directory / "in.fasta.gz")
    output = str(directory / "installed")
    words = ["--input", "in.fasta.gz", "--output", output]
    [line] = next_lines("-m", "amplify_ds.build_shards", *words, cwd=directory)
    assert shlex.split(line) == ["python", "-m", "amplify_ds.inspect_shards", output, "--verify"]
    shown = subprocess.run(
        ["bash", "-c", line.replace("python", shlex.quote(sys.executable), 1)],
        cwd=directory,
        env=environment(1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and "match their checksums" in shown.stdout, shown.stderr


@needs_mmseqs
def test_decontamination_names_its_own_inputs(directory):
    shutil.copy(EXAMPLE / "validation.fasta.gz", directory / "held out.fasta.gz")
    words = ["--train", directory / "held out.fasta.gz", "--validation", directory / "held out.fasta.gz"]
    [line] = next_lines("data_prep/decontaminate.py", *words, "--output", directory / "similar.fasta")
    assert shlex.split(line)[1:] == [
        "data_prep/build_shards.py",
        "--input",
        str(words[1]),
        "--exclude",
        str(words[3]),
        os.path.realpath(directory / "similar.fasta"),
        "--output",
        "SHARDS",
    ]


def test_the_table_of_the_quick_start(directory, run):
    """Its last column, from the title on."""
    for name in ("train", "validation"):
        shutil.copytree(run_shards(run[0], name), directory / name)
    result = python(ROOT / "launch/summary.py", directory, "1", env=environment(1))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    title = next(i for i, line in enumerate(lines) if "command (after" in line)
    begin = lines[title].index("command (after")
    words = [shlex.split(line[begin:]) for line in lines[title + 1 :]]
    assert words[0] == ["python", "data_prep/inspect_shards.py", str(directory / "train"), "--verify"]
    assert words[1][3:] == ["--model", str(directory / "run"), "--data", str(directory / "validation")]
    assert words[4] == ["python", "launch/try_export.py", str(directory / "export")]


def run_shards(run, name):
    from amplify_ds.training.run_directory import read_description

    path = read_description(run)["settings"]["data"][name][0]
    return path.partition("held_out=")[2] or path
