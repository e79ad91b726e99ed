"""The DeepSpeed file: check its keys, and add the run's settings to it.

The file owns ZeRO, offload and communication; the recipe owns batch, clipping, precision and optimizer. DeepSpeed
silently ignores unknown top-level keys, so they are checked here first.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from amplify_ds.config import RunConfig
from amplify_ds.errors import AmplifyError
from amplify_ds.structured import read_json

ALLOWED = (
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "wall_clock_breakdown",
    "memory_breakdown",
    "flops_profiler",
    "timers",
)
OWNED_BY_RUN = {
    "train_batch_size": "training.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "training.micro_batch_rows",
    "gradient_accumulation_steps": "training.global_batch_tokens (accumulation is derived)",
    "gradient_clipping": "optimizer.gradient_clipping",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.precision",
    "optimizer": "optimizer.*",
    "scheduler": "optimizer.schedule",
    "activation_checkpointing": "training.activation_checkpointing",
    "steps_per_print": "log.every",
    "tensorboard": "log.every",
    "seed": "training.seed",
}


def read(path: str) -> dict[str, Any]:
    """Return the content of the DeepSpeed file. Raises AmplifyError, with file and key, if it is invalid."""
    try:
        content = read_json(Path(path))
    except FileNotFoundError:
        raise AmplifyError(f"{path}: no such DeepSpeed file; ds_configs/ has zero0.json to zero3.json") from None
    if not isinstance(content, dict):
        raise AmplifyError(f"{path}: expected a JSON object, found {type(content).__name__}")
    for key in content:
        if key in OWNED_BY_RUN:
            raise AmplifyError(
                f"{path}: {key} is not allowed here; use the run's setting {OWNED_BY_RUN[key]} instead "
                "(recipe, --config file or flag)"
            )
        if key not in ALLOWED:
            near = difflib.get_close_matches(key, ALLOWED, 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(ALLOWED)}"
            raise AmplifyError(f"{path}: unknown key {key}; {hint}")
    zero = content.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise AmplifyError(f'{path}: zero_optimization must hold settings, as in {{"stage": 1}}, found {zero!r}')
    if zero.get("compute_grad_norm", True) is not True:
        raise AmplifyError(
            f"{path}: zero_optimization.compute_grad_norm must be true or absent, because a step is applied only if "
            "the norm is finite"
        )
    if type(stage(content)) is not int or stage(content) not in (0, 1, 2, 3):
        raise AmplifyError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, found {stage(content)!r}")
    return content


def stage(content: dict[str, Any]) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration."""
    return content.get("zero_optimization", {}).get("stage", 0)


def merge(
    content: dict[str, Any], run: RunConfig, accumulation: int, world_size: int, precision: str
) -> dict[str, Any]:
    """Return the complete DeepSpeed configuration, file and run settings together. Batch sizes are in rows."""
    rows = run.training.micro_batch_rows
    merged = {
        "timers": {"throughput": {"enabled": False}},  # they wait for the device twice per micro batch
        **content,
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": rows * accumulation * world_size,
        "gradient_clipping": run.optimizer.gradient_clipping,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW updates offloaded states, so no compiler is needed
    }
    if precision != "fp32":  # fp8 is bf16 except for some matrix products
        if stage(content) == 0:  # DeepSpeed's own bf16 at stage 0 counts one step of Adam too many
            merged["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        else:
            merged["bf16"] = {"enabled": True}
            merged["data_types"] = {"grad_accum_dtype": "fp32"}  # else gradients of micro batches are summed in bf16
    return merged
