"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from amplify_ds.config import Optimizer


def learning_rate(step: int, settings: Optimizer) -> float:
    """Return the learning rate of optimizer step `step` (the first is 0).

    It rises linearly from 0 in the warm-up, then falls from the peak to `final_lr_share` of it at `decay_steps`, and
    stays constant. With p the share of the decay that has passed and r the final share, the factor is

    - amplify: r + (1 − r)·((1 − p) + p·r)·(1 + cos πp)/2, the official "CosineDecay" (cosine × linear;
      chandar-lab/AMPLIFY, src/amplify/scheduler)
    - cosine: r + (1 − r)·(1 + cos πp)/2
    - linear: 1 − (1 − r)·p
    - constant: 1
    """
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    r = settings.final_lr_share
    p = min(1.0, (step - settings.warmup_steps) / (settings.decay_steps - settings.warmup_steps))
    cosine = (1 + math.cos(math.pi * p)) / 2
    factor = {
        "amplify": r + (1 - r) * ((1 - p) + p * r) * cosine,
        "cosine": r + (1 - r) * cosine,
        "linear": 1 - (1 - r) * p,
    }[settings.schedule]
    return settings.lr * factor
