"""Figures from TensorBoard events: each validation set has its own lines."""

import matplotlib
import pytest
from torch.utils.tensorboard import SummaryWriter

from amplify_ds import plot


@pytest.fixture
def run(tmp_path):
    """Events of two steps and three sets, whose losses are 1, 2 and 3 and a tenth more under the second protocol."""
    with SummaryWriter(tmp_path / "events") as events:
        for step in (10, 20):
            events.add_scalar("train/loss", 3.0, step)
            for number, name in enumerate(("uniprot", "SCOP domains", "oas"), 1):
                for protocol, more in (("published", 0), ("mask_only", 0.1)):
                    for key in ("loss", "perplexity", "baseline_loss", "baseline_perplexity"):
                        value = number + more + 10 * key.startswith("baseline")
                        events.add_scalar(f"validation/{name}/{protocol}/{key}", value, step)
    return tmp_path


def test_each_set_and_protocol_is_a_line_of_its_own(run):
    lines = plot._validation(plot.read_scalars(run), "loss")
    points = {label: (steps, values[0]) for label, steps, values, _, _ in lines}
    assert len(points) == len(lines) == 12
    for number, name in enumerate(("uniprot", "SCOP domains", "oas"), 1):
        for title, more in (("80/10/10 masking", 0), ("<mask> only", 0.1)):
            assert points[f"model, {name}, {title}"] == ([10, 20], pytest.approx(number + more))
            assert points[f"residue frequencies, {name}, {title}"] == ([10, 20], pytest.approx(number + more + 10))
    models = [colour for label, _, _, colour, form in lines if label.startswith("model")]
    assert len(set(models)) == 6, "a colour for each"


def test_figures_are_written(run):
    paths = plot.draw(run, run / "plots")
    assert [path.name for path in paths] == ["training_loss.png", "validation_loss.png", "validation_ppl.png"]
    assert matplotlib.image.imread(paths[1]).std() > 0
