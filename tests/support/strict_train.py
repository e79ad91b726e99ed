"""amplify_ds.train on a GPU, with an error if the host waits for it between logs, except in the update.

torch.cuda.set_sync_debug_mode detects reads and copies that wait, but not DeepSpeed's own calls of synchronize, which
host_syncs.py counts. SPOILED in the environment: the loss is read in every micro batch.
"""

import math
import os
from types import SimpleNamespace
from unittest import mock

import torch

from amplify_ds import train
from amplify_ds.errors import command
from amplify_ds.training import engine, trainer, watchdog

FIRST, EVERY = 4, 5  # strict from step FIRST on, when optimizer state and kernels exist; EVERY: log.every of the run
IN_A_STEP = ("waiting for data", "forward and backward")
at, update, loss_of = (
    watchdog.Watchdog.at,
    engine.deepspeed.DeepSpeedEngine._take_model_step,
    trainer.masked_language_loss,
)


def strictly_at(self, step, phase):
    at(self, step, phase)
    strict = step >= FIRST and (phase in IN_A_STEP or (phase == "between steps" and step % EVERY))
    torch.cuda.set_sync_debug_mode("error" if strict else "default")


def allowed(call):
    """Return the function `call`, allowed to wait for the GPU."""

    def waiting(*args, **kwargs):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return call(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return waiting


def spoiled_loss(*arguments):
    loss, row_losses = loss_of(*arguments)
    assert loss.item() > 0
    return loss, row_losses


mock.patch.object(watchdog.Watchdog, "at", strictly_at).start()
mock.patch.object(engine.deepspeed.DeepSpeedEngine, "_take_model_step", allowed(update)).start()
mock.patch.object(engine, "math", SimpleNamespace(isfinite=allowed(math.isfinite))).start()  # of the norm, at stage 0
if "SPOILED" in os.environ:
    mock.patch.object(trainer, "masked_language_loss", spoiled_loss).start()
if __name__ == "__main__":
    command(train.main)
