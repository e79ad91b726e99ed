"""The growth benchmark: windows have the given length, and FLOPs and shares match a count by hand."""

import argparse
import re

import numpy as np
import pytest

from amplify_ds.benchmarks import growth, steps
from amplify_ds.config import resolve
from amplify_ds.data.loader import BatchSplit, TrainingBatches
from amplify_ds.errors import AmplifyError
from amplify_ds.training import derived
from tests.support.commands import python


def cells(text):
    """Return {first column: the numbers in the other columns} of all tables."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and len(row := re.split(r" *\| *", line.strip("| "))) > 1:
            rows[row[0]] = [float(x.replace(",", "").rstrip("%")) for x in row[1:] if re.fullmatch(r"[\d,.]+%?", x)]
    return rows


@pytest.mark.slow
def test_prints_the_tables(tmp_path):
    arguments = ["--part", "length", "--part", "shards", "--part", "ranks"]
    arguments += ["--turns", 1, "--lengths", 2048, "--shards", 3, "--ranks", 2]
    result = python("-m", "amplify_ds.benchmark", "growth", *arguments, "--directory", tmp_path)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())
    rows = cells(result.stdout)
    width, layers, ffn, row, length = 192, 2, 512, 8192, 2048
    seconds, residues, gflops, attention, memory = rows[f"{length:,}"]
    products = 6 * row * layers * (4 * width**2 + 3 * width * ffn)  # per weight: multiply and add, three times
    pairs = 3 * layers * (row // length) * 2 * (2 * width * length**2)  # QKᵀ and PV, forward and twice backward
    assert seconds * gflops == pytest.approx((products + pairs) / 1e9, rel=0.02)
    assert attention == pytest.approx(100 * pairs / (products + pairs), abs=0.51)
    assert seconds * residues == pytest.approx(row - 2 * row / length, rel=0.02)
    assert 0.1 < memory < 20
    assert rows["3"][0] == 48_000 and rows["3"][-1] <= 9
    seconds, residues, share, communication, _ = rows["2"]
    assert seconds * residues == pytest.approx(2 * (row - 32), rel=0.02) and share == 100 and communication <= 100


@pytest.mark.parametrize("length", [8, 512, 8192])
def test_windows_have_exactly_the_length(tmp_path, length):
    run = resolve("tiny", None, {"data.train": [str(steps.exact_windows(tmp_path, length, 8192))]})
    mixture = derived.training_sources(run)
    batch = TrainingBatches(mixture, BatchSplit(2, 2, 1, 0, 1), 0, 0.15, 0.8, 0.1)[3]
    lengths = batch.cu_seqlens.diff().numpy()
    assert (lengths[lengths > 0] == length).all() and lengths.sum() == 2 * 8192
    assert batch.residues == 2 * 8192 - 2 * np.count_nonzero(lengths)


class FakeProcess:
    """A contestant's process whose steps took the given seconds."""

    def __init__(self, seconds, communication):
        self.steps = iter([{"seconds": s, "residues": 100.0, "flops": 10.0} for s in seconds])
        self.communication, self.ended = communication, False

    def send(self, method):
        self.method = method

    def wait(self):
        if not hasattr(self, "method"):
            return {}
        if self.method == "step":
            return next(self.steps)
        return {"parts": {"forward": 1.0, "communication": self.communication}, "memory": {"memory": 7.0}}[self.method]

    def end(self):
        self.ended = True


def test_the_slowest_rank_counts_and_the_first_step_does_not():
    ranks = [FakeProcess([99, 1, 5, 2], 1.0), FakeProcess([1, 3, 4, 1], 3.0)]
    found = steps.measure({"two": ranks}, 3, "")["two"]
    assert found == steps.Measured(np.median([3, 5, 2]), 200.0, 20.0, 7.0, np.mean([1 / 2, 3 / 4]))
    assert all(one.ended for one in ranks)


def test_models_by_size(tmp_path, monkeypatch):
    started = []

    def start(kind, config, *words):
        started.append((kind, config.model.hidden_size, config.model.num_hidden_layers, *words[:2]))
        return [FakeProcess([9, 2], 0.0)]

    monkeypatch.setattr(growth, "_free_memory", lambda: 1e12)
    monkeypatch.setattr(growth, "start_contestant", start)
    rows = cells(growth.by_size(tmp_path, [("tiny", 1), ("120M", None)], 1))
    assert started == [("ours", 192, 1, 1, 1), ("ours", 640, 24, 1, 1)]
    width, ffn = 192, 512
    assert rows["tiny, 1 layers"][0] == 4 * width**2 + 3 * width * ffn + 2 * width + 2 * 27 * width + width + 27
    parameters, seconds, residues, *_ = rows["120M"]
    assert (parameters, seconds, residues) == (118_276_507, 2, 50)


def test_a_model_that_does_not_fit_into_memory_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "_free_memory", lambda: 6.9e9)
    monkeypatch.setattr(growth, "start_contestant", lambda *arguments: pytest.fail("starts"))
    text = growth.by_size(tmp_path, [("350M", None)], 1)
    assert re.search(r"350M: left out, needs up to \d+\.\d GiB, 6\.4 GiB are free", text)
    assert float(re.search(r"up to (\S+) GiB", text)[1]) > 354_008_667 * 16 / 2**30


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lengths", 500], "--lengths 500: must be at least 8 and divide the 8192"),
        (["--sizes", "120B"], "--sizes 120B: expected RECIPE[:LAYERS]"),
        (["--sizes", "tiny:0"], "--sizes tiny:0"),
        (["--turns", 0], "must be at least 1"),
    ],
)
def test_bad_options(tmp_path, arguments, message):
    parser = argparse.ArgumentParser()
    growth.add_arguments(parser)
    with pytest.raises(AmplifyError, match=re.escape(message)):
        growth.run(parser.parse_args([*map(str, arguments), "--directory", str(tmp_path)]))
    assert not list(tmp_path.iterdir())
