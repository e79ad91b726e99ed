"""Fixtures shared by several test files."""

import os
import signal
from pathlib import Path

import dnaio
import pytest
from hypothesis import settings

from tests.support import families as relatives
from tests.support.commands import python, ranks_of
from tests.support.paths import EXAMPLE, ROOT
from tests.support.slurm import slurm_of
from tests.support.training import EVERY_THREE, train, training_words

# The same examples each time, unless EXAMPLES=20000 searches more; a failure prints how to repeat it.
settings.register_profile("ours", deadline=None, derandomize="EXAMPLES" not in os.environ, print_blob=True)
settings.load_profile("ours")
# A shell's background jobs ignore SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> dict[str, Path]:
    """Shards of the first bundled proteins, in rows of 1,024 tokens and windows of at most 96."""
    directory = tmp_path_factory.mktemp("shards")
    for name, count in (("train", 400), ("validation", 30)):
        with dnaio.open(EXAMPLE / f"{name}.fasta.gz") as reader, open(directory / f"{name}.fasta", "w") as file:
            for _, record in zip(range(count), reader):
                file.write(f">{record.name}\n{record.sequence}\n")
        arguments = ["--input", directory / f"{name}.fasta", "--output", directory / name]
        result = python("data_prep/build_shards.py", *arguments, "--max-length", 96, "--row-tokens", 1024)
        assert result.returncode == 0, result.stderr
    return {name: directory / name for name in ("train", "validation")}


@pytest.fixture(scope="session")
def uninterrupted(shards, tmp_path_factory):
    """A complete run on two ranks, to compare interrupted runs with; run.rows lists the rows it read (recording)."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    recording = {"RECORD": str(output.with_suffix(".rows")), "PYTHONPATH": str(ROOT / "tests/support/recording")}
    result = ranks_of(2, "amplify_ds.train", *training_words(output, shards, 1, **EVERY_THREE), **recording)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture(scope="session")
def four_steps(shards, tmp_path_factory):
    """A complete run of four steps on one rank, read by several tests; they must not write into it."""
    output = tmp_path_factory.mktemp("four_steps") / "run"
    result = train(1, output, shards, training__steps=4)
    assert result.returncode == 0, result.stderr
    return output


@pytest.fixture
def families(tmp_path) -> dict[str, list[str]]:
    return relatives.write(tmp_path)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A real SLURM of two nodes."""
    with slurm_of(tmp_path_factory.mktemp("slurm")) as started:
        yield started
