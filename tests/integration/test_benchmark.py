"""The parts of the benchmark run and print their tables; the figures are not tested."""

import pytest
import torch

from amplify_ds.config import resolve
from tests.support.commands import python


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, names",
    [
        (["prep", "--residues", "1e6"], ["limit", "finished shards", "datasets.map", "rows full", "peak memory"]),
        (["start", "--rows", "4e3", "--shards", 20, "--step", 7], ["4,000 rows", "step 7 ready", "memory added"]),
        (["embed", "--turns", 1, "--proteins", 4, "--batches", 2], ["packed", "2 a batch, file order", "difference"]),
        (
            ["train", "--turns", 1, "--layers", 1],
            ["| padded |", "| ours |", "| matrices |", "peak memory of ours", "backward"],
        ),
        (["loader", "--turns", 1], ["this loader", "DataCollatorForLanguageModeling", "times slower"]),
    ],
)
def test_prints_the_table(shards, tmp_path, words, names):
    if words[0] in ("loader", "train"):
        words = [*words, "--data", shards["train"]]
    result = python("-m", "amplify_ds.benchmark", *words, "--directory", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in names:
        assert name in result.stdout, result.stdout
    assert not list(tmp_path.iterdir())


def test_the_padded_contestant_reads_the_windows_of_ours(shards):
    from amplify_ds.benchmarks.contestants import Padded

    run = resolve("tiny", None, {"data.train": [str(shards["train"])], "model.num_hidden_layers": 1})
    padded = Padded(run, 3, 0, 1, torch.get_num_threads())
    batch = padded.batches[0]
    ids, seen, labels = padded.pad(batch)
    assert ids.shape[1] == 96 and seen.sum() == batch.tokens and (labels >= 0).sum() == batch.targets
    own = torch.cat(
        [batch.input_ids[a:b] for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:]) if batch.input_ids[a:b].any()]
    )
    assert torch.equal(ids[seen], own)
    assert torch.equal(labels[labels >= 0], batch.labels[batch.labels >= 0])
