"""Loss and gradient under Hugging Face's Trainer do not depend on how a batch is split into micro batches."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.network import free_port
from tests.support.commands import other_packages
from tests.support.paths import ROOT

SEED, SHAPE = 3, dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=128)
MICRO_BATCHES = {1: [32, 16, 8, 4], 2: [16, 8, 4, 2]}  # {ranks: sizes}, of 32 proteins: 1, 2, 4 and 8 micro batches


def proteins(labelled):
    """Yield 32 proteins of 5 to 40 tokens, with `labelled(length)` labels each."""
    for _ in range(32):
        ids = torch.randint(5, 26, (int(torch.randint(5, 41, ())),))
        labels = torch.full_like(ids, -100)
        chosen = torch.randperm(len(ids))[: labelled(len(ids))]
        labels[chosen] = torch.randint(5, 26, chosen.shape)
        yield {"input_ids": ids.tolist(), "labels": labels.tolist()}


@pytest.fixture(scope="module")
def data():
    """Training proteins have different numbers of labels, validation proteins two, as Trainer averages batch means."""
    torch.manual_seed(0)
    content = {"seed": SEED, "shape": SHAPE, "train": list(proteins(lambda n: 1 + n // 4 * (n % 3)))}
    content["validation"] = list(proteins(lambda n: 2))
    return content


@pytest.fixture(scope="module")
def expected(data):
    """Return training loss, gradient norm and validation loss from plain PyTorch in float64, one protein at a time."""
    torch.manual_seed(SEED)
    model = ReferenceAMPLIFY(**SHAPE).double()

    def loss(proteins):
        losses, count = 0.0, 0
        for protein in proteins:
            labels = torch.tensor(protein["labels"])
            logits = model(torch.tensor([protein["input_ids"]]))[0]
            losses = losses + F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="sum")
            count += int((labels != -100).sum())
        return losses / count

    training = loss(data["train"])
    training.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    return [training.item(), norm.item(), loss(data["validation"]).item()]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["transformers5", "transformers4"])
@pytest.mark.parametrize("ranks", MICRO_BATCHES)
def test_a_batch_split_in_four_ways_has_one_loss_and_gradient(version, ranks, data, expected, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(data))
    environment = other_packages(version)
    environment["PYTHONPATH"] += f":{ROOT}"
    command = [sys.executable, ROOT / "tests/support/trainer_steps.py", tmp_path / "data.json", tmp_path / "out"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            [*map(str, command), json.dumps(MICRO_BATCHES[ranks])],
            text=True,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | (meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, outputs[0][1] + outputs[-1][1]
    results = json.loads(outputs[0][0].splitlines()[-1])
    assert len(results) == 4
    for numbers in results:
        assert numbers == pytest.approx(expected, rel=1e-6)
