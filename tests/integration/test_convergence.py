"""The benchmark of convergence: its numbers recomputed from what the runs wrote, and what it reuses and refuses."""

import argparse
import json
import re

import numpy as np
import pytest

from amplify_ds import config
from amplify_ds.benchmarks import convergence, curves, training_runs
from amplify_ds.errors import AmplifyError
from tests.support.training import SMALL

SMALLER = {key: value for key, value in SMALL.items() if key.startswith("model.")} | {
    "optimizer.warmup_steps": 3,
    "checkpoint.every": 10,
    "log.every": 5,
}


def options(place, *words):
    parser = argparse.ArgumentParser()
    convergence.add_arguments(parser)
    fixed = ["--directory", place, "--steps", 20, "--every", 10, "--seeds", 1, "--ranks", 1]
    return parser.parse_args([str(word) for word in (*fixed, *words)])


@pytest.fixture(scope="module")
def small(request):
    """The recipe with a model of 0.1 million parameters, and batches of two rows."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr(convergence, "ROWS", 2)
    patch.setattr(convergence, "resolve", lambda *words: config.resolve(*words[:2], {**SMALLER, **words[2]}))
    return patch


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """A benchmark of the recipe and a contestant of a file: its directory, options and table."""
    place = tmp_path_factory.mktemp("convergence")
    (place / "fast.yaml").write_text("optimizer: {lr: 2.0e-2}\n")
    fast = ["--contestant", f"fast={place / 'fast.yaml'}", "--no-half"]
    asked = options(place / "runs", *fast, "--markdown", place / "table.md")
    convergence.run(asked)
    asked.markdown = None
    return place / "runs", asked, (place / "table.md").read_text()


@pytest.mark.slow
def test_the_table_says_what_the_runs_wrote(done):
    place, _, text = done
    rows = {cells[1]: cells[2:-1] for line in text.splitlines() if len(cells := re.split(r" *\| *", line)) > 6}
    results = {}
    for name in ("published", "fast"):
        result = json.loads((place / f"{name}-seed-0/result.json").read_text())
        loss = [score["loss"] for score in result["evaluations"] if score["protocol"] == "mask_only"]
        assert len(loss) == 3
        steps, shown, perplexity, seconds, residues, paired = rows[name]
        assert int(steps) == result["steps"] == 20
        assert shown == f"{loss[-1]:.4f}" and perplexity == f"{np.exp(loss[-1]):.2f}"
        assert float(seconds) == pytest.approx(result["seconds"], rel=1e-3, abs=0.051)
        assert residues == f"{result['residues'] / 1e6:.3f}"
        results[name] = result, loss, paired
    lowest = results["published"][1][-1]
    assert results["fast"][2] == f"{results['fast'][1][-1] - lowest:+.4f}"
    loss = np.array(results["fast"][1])
    assert (loss.min() <= lowest) == ("- fast: reached after" in text), text
    assert "tuned on this same validation set" in text


@pytest.mark.slow
def test_what_an_evaluation_had_cost_is_what_the_checkpoint_of_its_step_knows(done, small):
    place, *_ = done
    curve = curves.read(place / "published-seed-0")
    assert curve.steps.tolist() == [0, 10, 20] and curve.seconds[0, 0] == curve.residues[0, 0] == 0
    for number, step in ((1, 10), (2, 20)):
        state = json.loads((place / f"published-seed-0/checkpoints/step-{step:08d}/state.json").read_text())
        assert curve.residues[0, number] == state["progress"]["residues"]
        assert curve.seconds[0, number] == pytest.approx(state["progress"]["seconds"], rel=1e-3)


@pytest.mark.slow
def test_what_is_complete_is_not_trained_again_and_other_settings_are_refused(done, small, capsys, tmp_path):
    place, asked, text = done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_runs, "_start", lambda *words: pytest.fail("trains again"))
        convergence.run(asked)
        assert text.strip() in capsys.readouterr().out
        for words, said in ((["--steps", 24], "training.steps"), (["--ranks", 2], "micro_batch_rows")):
            with pytest.raises(AmplifyError, match=said):
                convergence.run(options(place, "--contestant", asked.contestant[0], *words))
        for words, said in (
            (["--contestant", "fast"], "expected NAME=FILE.yaml"),
            (["--contestant", "published=x.yaml"], "already a contestant named published"),
            (["--contestant", f"bad={tmp_path / 'absent.yaml'}"], "no such configuration file"),
            (["--picture", place / "convergence.png"], "exists already"),
            (["--seeds", 0], "at least 1"),
        ):
            with pytest.raises(AmplifyError, match=said):
                convergence.run(options(tmp_path / "new", *words))
    assert not (tmp_path / "new").exists()


def test_the_contestants_and_their_schedules(small, tmp_path):
    asked = options(tmp_path)
    found = {one.name: convergence._config(one, asked, 2, tmp_path, 7) for one in convergence._contestants(asked)}
    assert list(found) == ["published", "ours", "ours, half"]
    for name, run in found.items():
        assert run.training.steps == run.optimizer.decay_steps == (10 if "half" in name else 20)
        assert (run.training.seed, run.training.global_batch_tokens, run.training.micro_batch_rows) == (7, 1024, 1)
    published = config.resolve("tiny", None, SMALLER).optimizer.model_dump()
    assert {**found["published"].optimizer.model_dump(), "decay_steps": 250} == published
    assert len(convergence._contestants(options(tmp_path, "--no-half"))) == 2


def test_where_a_curve_comes_down_to_a_target():
    draw = np.random.default_rng(0)
    x, y = np.cumsum(draw.random(30)), np.sort(draw.random(30))[::-1]
    for target in draw.uniform(y[-1], y[0], 50):
        assert curves.reached(x, y, target) == pytest.approx(np.interp(-target, -y, x))
    assert curves.reached(x, y, y[-1] - 1e-9) is None and curves.reached(x, y, 2.0) == x[0]
    assert curves.reached(np.arange(4.0), np.array([3.0, 1.0, 2.0, 0.0]), 1.5) == 0.75, "the first of several"


def test_spread_and_paired_difference_of_seeds():
    x = np.array([[0.0, 10.0], [0.0, 12.0], [0.0, 14.0]])
    first = np.array([[3.0, 2.0], [3.0, 2.3], [3.0, 2.1]])
    other = first - np.array([[0.0, 0.4], [0.0, 0.1], [0.0, 0.1]])
    found = {name: curves.Curve(np.array([0, 5]), x, x * 1e6, y) for name, y in (("a", first), ("b", other))}
    text = curves.table(found, 3)
    difference = (other - first)[:, -1]
    assert f"{first[:, -1].mean():.4f} ± {np.std(first[:, -1], ddof=1):.4f}" in text
    assert f"{difference.mean():+.4f} ± {np.std(difference, ddof=1) / np.sqrt(3):.4f}" in text
    share = (3.0 - first[:, -1].mean()) / (3.0 - other[:, -1].mean())
    assert f"{share:.1%} of the time of a (more than half)" in text, text
