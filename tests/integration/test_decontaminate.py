"""Decontamination with the real MMseqs2: similar sequences are found, left out and recorded, and --check agrees."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from amplify_ds import decontaminate
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.prepare import mmseqs
from tests.support.building import build, windows, write_fasta
from tests.support.commands import python
from tests.support.needs import needs_mmseqs


def run(directory: Path, *arguments) -> int:
    return decontaminate.main(["--validation", str(directory / "valid.fasta"), *map(str, arguments)])


@needs_mmseqs
def test_what_is_similar_is_left_out_and_the_check_agrees(tmp_path, families):
    train, similar = tmp_path / "train.fasta", tmp_path / "similar.fasta"
    build(train, tmp_path / "leaky", "--max-length", 700)
    with pytest.raises(AmplifyError, match=r"8 of 73 windows are at least 90% identical"):
        run(tmp_path, "--check", tmp_path / "leaky")

    run(tmp_path, "--train", train, "--output", similar)
    expected = {text for name in ("near", "inside", "part", "chain") for text in families[name]}
    assert set(similar.read_text().splitlines()[1::2]) == expected

    build(train, tmp_path / "clean", "--exclude", similar, "--max-length", 700)
    kept = Counter(f"<bos>{text}<eos>" for text in families["far"] + families["others"])
    assert windows(tmp_path / "clean") == kept
    assert run(tmp_path, "--check", tmp_path / "clean") == 0
    [excluded] = Shards(tmp_path / "clean").manifest["exclude"]
    proof = excluded["proof"]
    assert proof["counts"] == {"records": 73, "searched": 73, "similar": 8, "validation": 5}
    assert proof["version"] == mmseqs.version() and proof["command"].startswith("mmseqs easy-search")
    assert proof["identity"] == 0.9 and [source["name"] for source in proof["validation"]] == ["valid.fasta"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@needs_mmseqs
def test_identity_and_chunks(tmp_path, families, monkeypatch):
    monkeypatch.setattr(decontaminate, "_CHUNK", 3000)
    for identity, count in ((0.99, 1), (0.75, 13)):
        output = tmp_path / f"{identity}.fasta"
        run(tmp_path, "--train", tmp_path / "train.fasta", "--output", output, "--identity", identity)
        assert json.loads((tmp_path / f"{identity}.fasta.proof.json").read_text())["counts"]["similar"] == count
    with pytest.raises(AmplifyError, match="exists"):
        run(tmp_path, "--train", tmp_path / "train.fasta", "--output", output)


@needs_mmseqs
def test_interrupted_it_continues(tmp_path, families, monkeypatch):
    paths = [tmp_path / "train.fasta", write_fasta(tmp_path / "more.fasta", families["near"])]
    arguments = ["--train", *paths, "--output", tmp_path / "similar.fasta"]
    find = decontaminate.find_similar
    done = []

    def interrupted(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return find(*arguments)

    monkeypatch.setattr(decontaminate, "find_similar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments)
    done.clear()
    monkeypatch.setattr(decontaminate, "find_similar", lambda *a: done.append(1) or find(*a))
    run(tmp_path, *arguments)
    assert len(done) == 1 and len((tmp_path / "similar.fasta").read_text().splitlines()) == 2 * 13


def test_without_mmseqs_it_says_how_to_install_it(tmp_path, families, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AmplifyError, match="apt install mmseqs2"):
        run(tmp_path, "--train", tmp_path / "train.fasta", "--output", tmp_path / "similar.fasta")


@pytest.mark.parametrize(
    "arguments", [["--train", "a"], ["--check", "a", "--output", "b"], ["--train", "a", "--check", "b"]]
)
def test_options_that_exclude_each_other(arguments):
    with pytest.raises(SystemExit):
        decontaminate.main(["--validation", "valid.fasta", *arguments])
    assert sys.stderr


@pytest.mark.parametrize(
    "option, value", [("--threads", 10**6), ("--threads", 0), ("--min-bits", "nan"), ("--min-bits", -1)]
)
def test_invalid_numbers_are_refused(tmp_path, option, value):
    arguments = ["--train", "a.fasta", "--validation", "b.fasta", "--output", tmp_path / "out.fasta", option, value]
    result = python("data_prep/decontaminate.py", *arguments)
    assert result.returncode == 1 and result.stderr.startswith(f"error: {option} is {value}"), result.stderr
