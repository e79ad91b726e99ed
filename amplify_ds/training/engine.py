"""The model under DeepSpeed: start the ranks, build the engine, take a step.

Only this file and full_state.py, which reads and writes the state that ZeRO partitions, import deepspeed.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
import deepspeed
import deepspeed.ops
from deepspeed.constants import default_pg_timeout
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import logger

from amplify_ds import network, rendezvous
from amplify_ds.errors import AmplifyError
from amplify_ds.processes import keep_freed_memory
from amplify_ds.training import ds_config
from amplify_ds.training.adamw import AdamW
from amplify_ds.training.full_state import FullState
from amplify_ds.training.normuon import NorMuon
from amplify_ds.training.ranks import Ranks

ZERO_SUPPORTED_OPTIMIZERS += [AdamW, NorMuon]  # else DeepSpeed warns that they are untested
logger.setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's calls, not ours


def meet() -> torch.distributed.Store:
    """Return the store that the ranks share. Without a launcher, this process is the only rank.

    Raises AmplifyError if the ranks do not find each other.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=network.LOOPBACK, MASTER_PORT="0")
    return rendezvous.meet(default_pg_timeout)


def start_ranks() -> Ranks:
    """Initialise the process group and return the `Ranks` of this process. Must be called on every rank."""
    accelerator = deepspeed.accelerator.get_accelerator()
    meet()
    rendezvous.choose_interfaces()
    if accelerator.device_name() == "cpu":
        keep_freed_memory()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it takes two minutes and a compiler to build
    else:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(init_method=rendezvous.URL)
    device = torch.device(accelerator.current_device_name())
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def stop_ranks() -> None:
    """Destroy the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _import_muon() -> None:
    """Import DeepSpeed's Muon without torch's compiler, before ZeRO imports it to check the type of the optimizer.

    Its functions have a decorator that compiles them and imports the compiler, which takes every rank two seconds. Here
    they get the decorator that DeepSpeed uses if torch has no compiler. Nothing calls these functions: the optimizer is
    a setting of the run, not of the DeepSpeed file. This relies on DeepSpeed's internals.
    """
    usual = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = usual


class Engine:
    """A model under DeepSpeed.

    A step is `forward` and `backward` for each micro batch, then one `update`. state: weights and moments as full
    tensors. shapes: shapes of the parameters, by name.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], ranks: Ranks):
        """config: complete DeepSpeed configuration (ds_config.merge). Raises AmplifyError if DeepSpeed rejects it.

        Must be called on every rank.
        """
        self.stage = ds_config.stage(config)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # before stage 3
        self._finite = True
        if self.stage == 0:  # only at the other stages does DeepSpeed check that the gradient is finite
            take_step = optimizer.step

            def step_if_finite(*args, **kwargs) -> None:
                if self._finite:
                    take_step(*args, **kwargs)

            optimizer.step = step_if_finite  # type: ignore[assignment, method-assign]  # of this object
        _import_muon()
        try:
            self._engine, self._optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        except (ValueError, AssertionError, deepspeed.DeepSpeedConfigError) as error:  # pydantic's is a ValueError
            raise AmplifyError(f"DeepSpeed rejects its configuration (--deepspeed_config): {error}") from None
        self._module = self._engine.module
        self.state = FullState(self._module, self._optimizer, self.stage, ranks)
        if isinstance(optimizer, NorMuon) and self.stage:
            optimizer.locate = self.state.fragments

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Return the logits [M, V] of the masked positions."""
        return self._engine(**inputs).logits

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro batch.

        loss: mean over the micro batch. `update` applies the gradient of the mean over all ranks and all micro batches
        since the last update.
        """
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro batch

    def update(self, lr: float) -> torch.Tensor | None:
        """Take an optimizer step at learning rate `lr`, after the `backward` of every micro batch.

        Returns the gradient norm before clipping, on the device; None if the gradient was not finite on any rank. In
        that case nothing has changed, including AdamW's step count.

        Must be called on every rank. The host waits for the device here, once per step, when all backward work is
        queued, because no weight may change before the norm is known to be finite. At stage 0 this function waits, at
        other stages DeepSpeed does.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._module.parameters() if p.grad is not None])
            self._finite = math.isfinite(norm)
            self._engine.step()
        else:
            self._engine.step()
            norm, self._finite = self._engine.get_global_grad_norm(), self._engine.was_step_applied()
        return norm if self._finite else None

    def evaluation(self) -> Callable[..., torch.Tensor]:
        """Switch to evaluation mode and return a function from model inputs to logits.

        At stage 3 every rank must call that function.
        """
        self._engine.eval()

        def logits(**inputs):
            with torch.no_grad():
                return self._engine(**inputs).logits

        return logits

    def training(self) -> None:
        """Switch back to training mode."""
        self._engine.train()
