"""The learning rate against the formulas of the official code."""

import math

import pytest

from amplify_ds.config import resolve
from amplify_ds.training.schedule import learning_rate


def settings(schedule, **flags):
    return resolve("120M", None, {"optimizer.schedule": schedule, **flags}).optimizer


def test_the_official_decay_is_cosine_times_linear():
    optimizer = settings("amplify")
    for step in (0, 1, 500, 999, 1000, 1001, 200_000, 450_500, 899_999, 900_000, 900_001, 999_999):
        if step < 1000:
            expected = step / 1000
        else:
            p = min(1, (step - 1000) / 899_000)
            linear = 1 - p * (1 - 0.1)  # from 1 to 0.1
            expected = 0.1 + 0.9 * linear * 0.5 * (1 + math.cos(math.pi * p))
        assert learning_rate(step, optimizer) == pytest.approx(1e-3 * expected, rel=1e-12)


@pytest.mark.parametrize("schedule, halfway, after", [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1, 1)])
def test_other_decays(schedule, halfway, after):
    optimizer = settings(schedule)
    assert learning_rate(500, optimizer) == pytest.approx(0.5e-3)
    assert learning_rate(1000, optimizer) == pytest.approx(1e-3)
    assert learning_rate(450_500, optimizer) == pytest.approx(halfway * 1e-3)
    assert learning_rate(2_000_000, optimizer) == pytest.approx(after * 1e-3)


def test_no_warm_up_begins_at_the_peak():
    assert learning_rate(0, settings("amplify", **{"optimizer.warmup_steps": "0"})) == 1e-3
