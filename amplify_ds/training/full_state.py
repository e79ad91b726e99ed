"""Read and write weights and moments of an engine as full tensors by name, at any ZeRO stage.

DeepSpeed keeps float32 weights and Adam's moments in flat partitions that depend on ZeRO stage and number of ranks, but
checkpoints must not depend on either. This file therefore uses internals of DeepSpeed 0.19.8 (pinned in
requirements.txt). If another version differs, tests/integration/test_checkpoint.py fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from amplify_ds.training.orthogonal import Fragment
from amplify_ds.training.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


class FullState:
    """The full state of one engine. optimizer: as `deepspeed.initialize` returned it, ZeRO's at stages 1 to 3."""

    def __init__(self, module: Any, optimizer: Any, stage: int, ranks: Ranks):
        self._module, self._optimizer, self._stage, self._ranks = module, optimizer, stage, ranks

    def named(self) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield (name, float32 weight, {moment name: tensor}) for every parameter, gathered one at a time.

        Every rank must exhaust the iterator. Before the first optimizer step there are no moments.
        """
        stepped = bool(self._inner.state)
        if self._stage in (1, 2) and stepped:
            self._link_moments()
        for name, param in self._module.named_parameters():
            if self._stage == 0:
                weight, state = param.detach(), self._inner.state.get(param, {})
                moments = {key: state[key] for key in MOMENTS if key in state}
            else:
                weight = safe_get_full_fp32_param(param)
                moments = {key: safe_get_full_optimizer_state(param, key) for key in MOMENTS if stepped}
            yield name, weight, moments

    def load(self, tensors: Callable[[str, str], torch.Tensor], steps: int) -> None:
        """Load weights and moments into a fresh engine. Must be called on every rank.

        tensors: function (kind, name) -> full float32 tensor of a parameter; kind is "weight" or one of MOMENTS.
        steps: optimizer steps taken so far, for AdamW's bias correction. If 0, only weights are loaded.
        """
        if steps:
            self._create_moments(steps)
        for name, param in self._module.named_parameters():
            self._set(param, None, tensors("weight", name))
            for key in MOMENTS if steps else ():
                self._set(param, key, tensors(key, name))

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The torch optimizer, whose state is kept per flat partition (stages 1 to 3) or per parameter (stage 0)."""
        return self._optimizer if self._stage == 0 else self._optimizer.optimizer

    def _partitions(self) -> list[torch.Tensor]:
        """Return the tensors that the inner optimizer updates."""
        if self._stage == 0:
            return list(self._module.parameters())
        if self._stage == 3:
            return self._optimizer.fp32_partitioned_groups_flat
        if hasattr(self._optimizer, "fp32_groups_flat_partition"):  # stage 1 in bf16
            return self._optimizer.fp32_groups_flat_partition
        return self._optimizer.single_partition_of_fp32_groups

    def fragments(self, partition: torch.Tensor) -> list[Fragment]:
        """Return the fragments of parameters in a partition of this rank, at stages 1 to 3."""
        numbers = {id(tensor): number for number, tensor in enumerate(self._partitions())}
        fragments = []
        for name, param in self._module.named_parameters():
            if self._stage == 3:
                number, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(param)]
                size = param.ds_tensor.numel()  # a rank's share; the last one is padded
                begin = self._ranks.rank * size
                length = min(size, param.ds_numel - begin)
            elif param._hp_mapping is None:
                continue
            else:
                mapping = param._hp_mapping
                number, offset = mapping.param_group_index, mapping.hp_fragment_address.start
                begin, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            if number == numbers[id(partition)] and length > 0:
                fragments.append(Fragment(name, begin, length, offset))
        return fragments

    def _create_moments(self, steps: int) -> None:
        for partition in self._partitions():
            device = partition.device if self._ranks.device.type == "cuda" else self._ranks.device
            self._inner.state[partition] = {
                "step": torch.tensor(float(steps), device=device),
                **{key: torch.zeros_like(partition.detach()) for key in MOMENTS},
            }
        if self._stage in (1, 2):
            self._link_moments()

    def _link_moments(self) -> None:
        # By itself, DeepSpeed links moments to parameters only after the first step of the first parameter group.
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, param: torch.nn.Parameter, moment: str | None, value: torch.Tensor) -> None:
        value = value.to(self._ranks.device)
        if self._stage == 0:
            (param.data if moment is None else self._inner.state[param][moment]).copy_(value)
        elif self._stage == 3:
            # A rank's share of the parameter; the last one is padded.
            local: torch.Tensor = param.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed adds it
            size = local.numel()
            padded = torch.nn.functional.pad(value.flatten(), (0, size * self._ranks.world_size - value.numel()))
            share = padded[self._ranks.rank * size : (self._ranks.rank + 1) * size]
            if moment is None:
                safe_set_local_fp32_param(param, share)
                local.data.copy_(share)
            else:
                safe_set_local_optimizer_state(param, share, moment)
        elif moment is None:
            safe_set_full_fp32_param(param, value)
            param.data.copy_(value)  # the next forward reads this copy
        else:
            safe_set_full_optimizer_state(param, value, moment)
