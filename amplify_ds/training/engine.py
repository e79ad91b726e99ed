"""The only file that imports deepspeed: start the ranks, build the engine, read and write its full state.

DeepSpeed keeps float32 weights and Adam's moments in flat partitions that depend on ZeRO stage and number of ranks.
Checkpoints must not depend on either, so `named_state` gathers them as full tensors under the parameters' names and
`load_state` puts such tensors into a fresh engine of any stage and size. That reaches into DeepSpeed 0.19.8 (the pin
of requirements.txt; the places are marked "insides"); if another version differs, tests/integration/test_checkpoint.py
fails.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
import deepspeed
import deepspeed.ops
from deepspeed import comm
from deepspeed.constants import default_pg_timeout
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import (
    logger,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from amplify_ds import network, rendezvous
from amplify_ds.config import Optimizer, RunConfig
from amplify_ds.errors import AmplifyError
from amplify_ds.processes import keep_freed_memory
from amplify_ds.training import ds_config, fp8
from amplify_ds.training.adamw import AdamW
from amplify_ds.training.normuon import NorMuon
from amplify_ds.training.orthogonal import Piece

ZERO_SUPPORTED_OPTIMIZERS += [AdamW, NorMuon]  # else DeepSpeed warns that it has not tried them; the tests here have
MOMENTS = ("exp_avg", "exp_avg_sq")
logger.setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's calls, not ours


def meet() -> torch.distributed.Store:
    """Find the other ranks; return the store that they share. Without a launcher the process is its own single rank.

    Raises AmplifyError when they cannot be found.
    """
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=network.LOOPBACK, MASTER_PORT="0")
    return rendezvous.meet(default_pg_timeout)


def start_ranks() -> torch.device:
    """Join the other ranks and return this rank's device."""
    accelerator = deepspeed.accelerator.get_accelerator()
    meet()
    rendezvous.choose_interfaces()
    if accelerator.device_name() == "cpu":
        keep_freed_memory()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else two minutes of compiling, and a compiler
    else:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(init_method=rendezvous.URL)
    return torch.device(accelerator.current_device_name())


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def barrier() -> None:
    comm.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    comm.all_reduce(values)
    return values


def stop_ranks() -> None:
    if comm.is_initialized():
        comm.destroy_process_group()


def is_broken_connection(error: RuntimeError) -> bool:
    """A collective has failed because another rank is gone. gloo has no type of error for it."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def from_leader(text: str) -> str:
    """Return what rank 0 gives. Collective."""
    box = [text]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]


def _optimizer(model: torch.nn.Module, settings: Optimizer, device: torch.device) -> torch.optim.Optimizer:
    if settings.kind == "normuon":
        return NorMuon(model, settings, device)
    return AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda" or None,
    )


def _import_muon() -> None:
    """Import DeepSpeed's Muon, which its ZeRO does to see that the optimizer is another, but not torch's compiler.

    Its functions are decorated to be compiled, and the decorator alone imports the compiler: two seconds of every
    rank. Insides: here they get the decorator that DeepSpeed has for a torch without compiler. Nothing calls them; the
    run's settings, not DeepSpeed's file, choose the optimizer.
    """
    usual = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = usual


class Engine:
    """A model under DeepSpeed.

    A step is `forward` and `backward` for each micro batch, then one `update`.
    """

    def __init__(self, model, run: RunConfig, zero: dict[str, Any], accumulation: int, precision: str, device):
        self.device = device
        self.stage = ds_config.stage(zero)
        self.precision = precision
        optimizer = _optimizer(model, run.optimizer, device)
        self._finite = True
        if self.stage == 0:  # at the other stages DeepSpeed looks whether the gradient is finite, here nobody does
            take = optimizer.step  # DeepSpeed calls the one that takes its place, of this object alone

            def step_if_finite(*args, **kwargs) -> None:
                if self._finite:
                    take(*args, **kwargs)

            optimizer.step = step_if_finite  # type: ignore[assignment, method-assign]  # see take
        if precision == "fp8":
            fp8.replace_linears(model, device)
        config = ds_config.merge(zero, run, accumulation, world_size(), precision)
        if run.training.compile:
            for block in model.transformer_encoder:  # one by one: what is compiled for the first serves all
                block.compile()
        _import_muon()
        try:
            self._engine, self._optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        except (ValueError, AssertionError, deepspeed.DeepSpeedConfigError) as error:  # pydantic's is a ValueError
            raise AmplifyError(f"DeepSpeed refuses its configuration (--deepspeed_config): {error}") from None
        self.module = self._engine.module
        if isinstance(optimizer, NorMuon) and self.stage:
            optimizer.locate = self._pieces

    def forward(self, **inputs: Any) -> torch.Tensor:
        """The wrapped model: model inputs -> logits [M, V]."""
        return self._engine(**inputs).logits

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro batch's gradient. The loss is a mean over its micro batch; what `update` applies is the gradient
        of the mean over all micro batches since the last update and over all ranks.
        """
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro batch, no more

    def update(self, lr: float) -> torch.Tensor | None:
        """One optimizer step at the learning rate `lr`, after the `backward` of every micro batch. Collective.

        Returns the gradient norm before clipping, on the device; None if it is not finite on any rank: then nothing has
        changed, and neither has AdamW's count of steps.

        The host waits for the device here, once a step, when all backward work is queued: no weight may change before
        the norm is known to be finite. At stage 0 it does so itself, at the others DeepSpeed does (and tells).
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
            self._finite = math.isfinite(norm)
            self._engine.step()
        else:
            self._engine.step()
            norm, self._finite = self._engine.get_global_grad_norm(), self._engine.was_step_applied()
        return norm if self._finite else None

    def evaluation(self) -> Callable[..., torch.Tensor]:
        """The wrapped model in evaluation mode: model inputs -> logits. Collective at stage 3."""
        self._engine.eval()

        def logits(**inputs):
            with torch.no_grad():
                return self._engine(**inputs).logits

        return logits

    def training(self) -> None:
        self._engine.train()

    def named_state(self) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
        """(name, float32 weight, {moment name: tensor}) of every parameter, gathered one at a time. Collective: every
        rank must draw all of it. Nothing is kept here; before the first optimizer step there are no moments.
        """
        stepped = bool(self._inner.state)
        if self.stage in (1, 2) and stepped:
            self._link_moments()
        for name, param in self.module.named_parameters():
            if self.stage == 0:
                weight, state = param.detach(), self._inner.state.get(param, {})
                moments = {key: state[key] for key in MOMENTS if key in state}
            else:
                weight = safe_get_full_fp32_param(param)
                moments = {key: safe_get_full_optimizer_state(param, key) for key in MOMENTS if stepped}
            yield name, weight, moments

    def load_state(self, tensors: Callable[[str, str], torch.Tensor], steps: int) -> None:
        """Put weights and moments into a fresh engine. Collective.

        `tensors(kind, name)` gives the full float32 tensor of a parameter, kind being "weight" or one of MOMENTS;
        `steps`: optimizer steps taken so far (AdamW's bias correction). With 0 steps only weights are loaded.
        """
        if steps:
            self._create_moments(steps)
        for name, param in self.module.named_parameters():
            self._set(param, None, tensors("weight", name))
            for key in MOMENTS if steps else ():
                self._set(param, key, tensors(key, name))

    # Insides of DeepSpeed 0.19.8 from here on.

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer whose state is kept by flat partition (stages 1 to 3) or by parameter (stage 0)."""
        return self._optimizer if self.stage == 0 else self._optimizer.optimizer

    def _partitions(self) -> list[torch.Tensor]:
        """The tensors that the inner optimizer steps."""
        if self.stage == 0:
            return list(self.module.parameters())
        if self.stage == 3:
            return self._optimizer.fp32_partitioned_groups_flat
        if hasattr(self._optimizer, "fp32_groups_flat_partition"):  # of stage 1 in bf16
            return self._optimizer.fp32_groups_flat_partition
        return self._optimizer.single_partition_of_fp32_groups

    def _pieces(self, partition: torch.Tensor) -> list[Piece]:
        """The pieces of parameters that stand in a partition of this rank, at stages 1 to 3."""
        numbers = {id(one): number for number, one in enumerate(self._partitions())}
        found = []
        for name, param in self.module.named_parameters():
            if self.stage == 3:
                number, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(param)]
                size = param.ds_tensor.numel()  # a rank's share, the last one padded
                begin = rank() * size
                length = min(size, param.ds_numel - begin)
            elif param._hp_mapping is None:
                continue
            else:
                mapping = param._hp_mapping
                number, offset = mapping.param_group_index, mapping.hp_fragment_address.start
                begin, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            if number == numbers[id(partition)] and length > 0:
                found.append(Piece(name, begin, length, offset))
        return found

    def _create_moments(self, steps: int) -> None:
        for partition in self._partitions():
            self._inner.state[partition] = {
                "step": torch.tensor(float(steps), device=partition.device if self.device.type == "cuda" else "cpu"),
                **{key: torch.zeros_like(partition.detach()) for key in MOMENTS},
            }
        if self.stage in (1, 2):
            self._link_moments()

    def _link_moments(self) -> None:
        # DeepSpeed links moments to parameters after the first parameter group's first step only.
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, param: torch.nn.Parameter, moment: str | None, value: torch.Tensor) -> None:
        value = value.to(self.device)
        if self.stage == 0:
            (param.data if moment is None else self._inner.state[param][moment]).copy_(value)
        elif self.stage == 3:
            # A rank's share, the last one padded.
            held: torch.Tensor = param.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed has put it there
            size = held.numel()
            padded = torch.nn.functional.pad(value.flatten(), (0, size * world_size() - value.numel()))
            share = padded[rank() * size : (rank() + 1) * size]
            if moment is None:
                safe_set_local_fp32_param(param, share)
                held.data.copy_(share)
            else:
                safe_set_local_optimizer_state(param, share, moment)
        elif moment is None:
            safe_set_full_fp32_param(param, value)
            param.data.copy_(value)  # the copy that the next forward reads
        else:
            safe_set_full_optimizer_state(param, value, moment)
