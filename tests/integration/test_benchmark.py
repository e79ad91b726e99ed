"""Each benchmark runs and prints its table; the figures are not tested."""

import pytest
import torch

from amplify_ds.config import resolve
from tests.support.commands import python


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, texts",
    [
        (
            ["prep", "--residues", "1e6"],
            ["limit", "finished shards", "datasets.map", "packing efficiency", "peak memory"],
        ),
        (["start", "--rows", "4e3", "--shards", 20, "--step", 7], ["4,000 rows", "step 7 ready", "memory added"]),
        (["embed", "--turns", 1, "--proteins", 4, "--batches", 2], ["packed", "2 per batch, file order", "difference"]),
        (
            ["train", "--turns", 1, "--layers", 1],
            ["| padded |", "| ours |", "| matrices |", "peak memory of ours", "backward"],
        ),
        (["loader", "--turns", 1], ["this loader", "DataCollatorForLanguageModeling", "times slower"]),
    ],
)
def test_prints_the_table(shards, tmp_path, arguments, texts):
    if arguments[0] in ("loader", "train"):
        arguments = [*arguments, "--data", shards["train"]]
    result = python("-m", "amplify_ds.benchmark", *arguments, "--directory", tmp_path)
    assert result.returncode == 0, result.stderr
    for text in texts:
        assert text in result.stdout, result.stdout
    assert not list(tmp_path.iterdir())


def test_padded_reads_the_same_windows_as_ours(shards):
    from amplify_ds.benchmarks.contestants import Padded

    run = resolve("tiny", None, {"data.train": [str(shards["train"])], "model.num_hidden_layers": 1})
    padded = Padded(run, 3, 0, 1, torch.get_num_threads())
    batch = padded.batches[0]
    ids, mask, labels = padded.pad(batch)
    assert ids.shape[1] == 96 and mask.sum() == batch.tokens and (labels >= 0).sum() == batch.targets
    expected = torch.cat(
        [batch.input_ids[a:b] for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:]) if batch.input_ids[a:b].any()]
    )
    assert torch.equal(ids[mask], expected)
    assert torch.equal(labels[labels >= 0], batch.labels[batch.labels >= 0])
