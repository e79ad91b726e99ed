"""Checkpoints of two tensors, for tests of saving and retention."""

from dataclasses import asdict

import torch

from amplify_ds.training.progress import Progress


def triples(value: float):
    for name in ("a", "b"):
        yield name, torch.full((3,), float(value)), {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.ones(3)}


def state(step: int) -> dict:
    score = {"step": step, "set": "held_out", "protocol": "mask_only", "loss": 2.5 + 1 / (step + 1)}
    return {
        "step": step,
        "progress": asdict(Progress(step=step, seconds=1.5 * step, history=[score])),
        "binding": {"training.seed": 0, "optimizer.lr": 1e-3},
        "settings": {"training": {"steps": 100}},
        "model": {"hidden_size": 3, "note": "ä"},
        "precision": "fp32",
        "skips": [{"source": "train", "row": 3, "from": 2}],
        "origin": None,
    }
