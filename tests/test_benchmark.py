"""The parts of the benchmark run and print their tables; the figures are not tested."""

import pytest
from conftest import python


@pytest.mark.parametrize(
    "words, names",
    [
        (["prep", "--residues", "1e6"], ["limit", "finished shards", "datasets.map", "rows full", "peak memory"]),
        (["start", "--rows", "4e3", "--shards", 20, "--step", 7], ["4,000 rows", "step 7 ready", "memory added"]),
        (["embed", "--turns", 1, "--proteins", 4, "--batches", 2], ["packed", "2 a batch, file order", "difference"]),
        (["loader", "--turns", 1], ["this loader", "DataCollatorForLanguageModeling", "times slower"]),
    ],
)
def test_prints_the_table(shards, tmp_path, words, names):
    if words[0] == "loader":
        words = [*words, "--data", shards["train"]]
    result = python("-m", "amplify_ds.benchmark", *words, "--directory", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in names:
        assert name in result.stdout, result.stdout
    assert not list(tmp_path.iterdir())
