"""Logged metrics against torch's count of FLOPs and the known number of rows that a run reads."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amplify_ds.benchmarks.padded_model import ReferenceAMPLIFY
from amplify_ds.data.shards import Shards
from amplify_ds.model.configuration_amplify import AMPLIFYConfig
from amplify_ds.plot import read_scalars
from amplify_ds.training.metrics import model_flops
from tests.support.training import SMALL, train


@pytest.mark.parametrize("length", [30, 400])
def test_flops_are_those_that_torch_counts(length):
    shape = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "norm_eps": 1e-5,
    }
    model = ReferenceAMPLIFY(**shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.full((1, length), 7), torch.ones(1, length, dtype=torch.bool)).sum().backward()
    decoder = 3 * 2 * 128 * 27 * length
    assert model_flops(AMPLIFYConfig(**shape), length, length**2) == pytest.approx(
        counter.get_total_flops() - decoder, rel=0.02
    )


def test_points_in_tensorboard(shards, tmp_path):
    """Two sources, two ranks, a point every five steps; means must not depend on the logging interval."""
    settings = {"training__micro_batch_rows": 1, "log__every": 5, "checkpoint__every": 5}
    both = {**shards, "train": f"a={shards['train']}:3"}
    result = train(2, tmp_path / "run", both, data__train=f"b={shards['validation']}:1", **settings)
    assert result.returncode == 0, result.stderr
    scalars = read_scalars(tmp_path / "run")
    rows = 10 * SMALL["training.global_batch_tokens"] // 1024
    for name, share, opened in (("a", 3, Shards(shards["train"])), ("b", 1, Shards(shards["validation"]))):
        read = rows * share // 4  # whole cycles of four rows
        assert scalars[f"data/epochs/{name}"] == (
            [5, 10],
            pytest.approx([read / 2 / opened.num_rows, read / opened.num_rows]),
        )
        full = opened.manifest["packing_efficiency"] * 1024
        assert scalars[f"data/tokens/{name}"][1][-1] == pytest.approx(read * full)
    assert scalars["train/skipped_steps"][1] == [0, 0]
    assert all(0.05 < size < 8 for rank in (0, 1) for size in scalars[f"memory/rank_{rank}_GiB"][1])
    assert all(0 <= share < 1 for share in scalars["speed/data_wait_fraction"][1])
    ratio = [
        a / b for a, b in zip(scalars["speed/model_tflops_per_device"][1], scalars["speed/share_of_device_peak"][1])
    ]
    assert ratio[0] == pytest.approx(ratio[1]) and 1e-4 < ratio[0] < 100, "TFLOP/s of the device"
    assert len(scalars["checkpoint/seconds_training_waited"][0]) == 2 and scalars["checkpoint/seconds_writing"][0] == [
        10
    ]
