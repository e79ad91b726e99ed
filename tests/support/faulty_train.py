"""amplify_ds.train with faults that the environment asks for: FAULTS='{"nan": [[batch, rank], …], "jump": […]}'.

nan: the loss of that batch on that rank is not a number. jump: its first row's loss is 100 times as high.
"""

import json
import os

import torch

from amplify_ds import train
from amplify_ds.errors import command
from amplify_ds.training import guards, trainer

FAULTS = json.loads(os.environ["FAULTS"])
guards.FEWEST = 4
calls = iter(range(10**9))
right = trainer.masked_language_loss


def wrong(logits, labels, rows):
    loss, row_losses = right(logits, labels, rows)
    here = [next(calls) + FAULTS.get("first_batch", 0), int(os.environ.get("RANK", 0))]
    if here in FAULTS.get("nan", []):
        loss = loss * torch.nan
    if here in FAULTS.get("jump", []):
        row_losses = row_losses * torch.tensor([100.0] + [1.0] * (rows - 1))
    return loss, row_losses


trainer.masked_language_loss = wrong
if __name__ == "__main__":
    command(train.main)
