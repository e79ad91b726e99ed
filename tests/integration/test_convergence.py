"""The convergence benchmark: its numbers match the files of the runs, and it reuses and refuses the right runs."""

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


def options(directory, *arguments):
    parser = argparse.ArgumentParser()
    convergence.add_arguments(parser)
    fixed = ["--directory", directory, "--steps", 20, "--every", 10, "--seeds", 1, "--ranks", 1]
    return parser.parse_args([str(argument) for argument in (*fixed, *arguments)])


@pytest.fixture(scope="module")
def small(request):
    """The recipe with a model of 0.1 million parameters, and batches of two rows."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr(convergence, "ROWS", 2)
    patch.setattr(
        convergence, "resolve", lambda recipe, file, settings: config.resolve(recipe, file, {**SMALLER, **settings})
    )
    return patch


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """A finished benchmark of the recipe and one contestant from a file: its directory, options and table."""
    top = tmp_path_factory.mktemp("convergence")
    (top / "fast.yaml").write_text("optimizer: {lr: 2.0e-2}\n")
    fast = ["--contestant", f"fast={top / 'fast.yaml'}", "--no-half"]
    parsed = options(top / "runs", *fast, "--markdown", top / "table.md")
    convergence.run(parsed)
    parsed.markdown = None
    return top / "runs", parsed, (top / "table.md").read_text()


@pytest.mark.slow
def test_the_table_matches_the_results_of_the_runs(done):
    directory, _, text = done
    rows = {cells[1]: cells[2:-1] for line in text.splitlines() if len(cells := re.split(r" *\| *", line)) > 6}
    results = {}
    for name in ("published", "fast"):
        result = json.loads((directory / f"{name}-seed-0/result.json").read_text())
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
def test_curves_match_the_checkpoints(done, small):
    directory, *_ = done
    curve = curves.read(directory / "published-seed-0")
    assert curve.steps.tolist() == [0, 10, 20] and curve.seconds[0, 0] == curve.residues[0, 0] == 0
    for number, step in ((1, 10), (2, 20)):
        state = json.loads((directory / f"published-seed-0/checkpoints/step-{step:08d}/state.json").read_text())
        assert curve.residues[0, number] == state["progress"]["residues"]
        assert curve.seconds[0, number] == pytest.approx(state["progress"]["seconds"], rel=1e-3)


@pytest.mark.slow
def test_complete_runs_are_reused_and_other_settings_are_refused(done, small, capsys, tmp_path):
    directory, parsed, text = done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_runs, "_start", lambda *arguments: pytest.fail("trains again"))
        convergence.run(parsed)
        assert text.strip() in capsys.readouterr().out
        for arguments, message in ((["--steps", 24], "training.steps"), (["--ranks", 2], "micro_batch_rows")):
            with pytest.raises(AmplifyError, match=message):
                convergence.run(options(directory, "--contestant", parsed.contestant[0], *arguments))
        for arguments, message in (
            (["--contestant", "fast"], "expected NAME=FILE.yaml"),
            (["--contestant", "published=x.yaml"], "already a contestant named published"),
            (["--contestant", f"bad={tmp_path / 'absent.yaml'}"], "no such configuration file"),
            (["--picture", directory / "convergence.png"], "exists already"),
            (["--seeds", 0], "at least 1"),
        ):
            with pytest.raises(AmplifyError, match=message):
                convergence.run(options(tmp_path / "new", *arguments))
    assert not (tmp_path / "new").exists()


def test_the_contestants_and_their_schedules(small, tmp_path):
    parsed = options(tmp_path)
    runs = {
        contestant.name: convergence._config(contestant, parsed, 2, tmp_path, 7)
        for contestant in convergence._contestants(parsed)
    }
    assert list(runs) == ["published", "ours", "ours, half"]
    for name, run in runs.items():
        assert run.training.steps == run.optimizer.decay_steps == (10 if "half" in name else 20)
        assert (run.training.seed, run.training.global_batch_tokens, run.training.micro_batch_rows) == (7, 1024, 1)
    published = config.resolve("tiny", None, SMALLER).optimizer.model_dump()
    assert {**runs["published"].optimizer.model_dump(), "decay_steps": 250} == published
    assert len(convergence._contestants(options(tmp_path, "--no-half"))) == 2


def test_first_point_at_which_a_curve_reaches_a_target():
    rng = np.random.default_rng(0)
    x, y = np.cumsum(rng.random(30)), np.sort(rng.random(30))[::-1]
    for target in rng.uniform(y[-1], y[0], 50):
        assert curves.reached(x, y, target) == pytest.approx(np.interp(-target, -y, x))
    assert curves.reached(x, y, y[-1] - 1e-9) is None and curves.reached(x, y, 2.0) == x[0]
    assert curves.reached(np.arange(4.0), np.array([3.0, 1.0, 2.0, 0.0]), 1.5) == 0.75, (
        "expected the first of several points"
    )


def test_spread_and_paired_difference_of_seeds():
    x = np.array([[0.0, 10.0], [0.0, 12.0], [0.0, 14.0]])
    first = np.array([[3.0, 2.0], [3.0, 2.3], [3.0, 2.1]])
    other = first - np.array([[0.0, 0.4], [0.0, 0.1], [0.0, 0.1]])
    both = {name: curves.Curve(np.array([0, 5]), x, x * 1e6, y) for name, y in (("a", first), ("b", other))}
    text = curves.table(both, 3)
    difference = (other - first)[:, -1]
    assert f"{first[:, -1].mean():.4f} ± {np.std(first[:, -1], ddof=1):.4f}" in text
    assert f"{difference.mean():+.4f} ± {np.std(difference, ddof=1) / np.sqrt(3):.4f}" in text
    share = (3.0 - first[:, -1].mean()) / (3.0 - other[:, -1].mean())
    assert f"{share:.1%} of the time of a (more than half)" in text, text
