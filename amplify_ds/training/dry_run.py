"""`--dry-run`: print the configuration and what follows from it, without training."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from amplify_ds.config import RunConfig
from amplify_ds.training import derived, ds_config, overlap


def print_plan(run: RunConfig, zero: dict[str, Any]) -> None:
    """Print, on rank 0, configuration, sizes, steps and memory for the number of devices that the launcher started.

    zero: content of the DeepSpeed file. Raises AmplifyError for invalid settings, as the run itself would.
    """
    if int(os.environ.get("RANK", 0)):
        return
    mixture = derived.training_sources(run)
    sets = derived.validation_sets(run)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    split = derived.split_batch(run, mixture.row_tokens, 0, world_size)
    model = derived.model_config(run, mixture.max_length)
    precision = derived.resolve_precision(run.training.precision, "cuda" if torch.cuda.is_available() else "cpu")
    memory = derived.memory_per_device(run, model, mixture.row_tokens, ds_config.stage(zero), world_size, precision)
    rows = f"{split.global_rows} rows of {mixture.row_tokens:,}"
    share = f"{world_size} devices × {split.micro_rows} rows × {split.accumulation} accumulated"
    if padding := split.computed_rows - split.global_rows:
        share += f", {padding} of them padding"
    epochs = mixture.epochs(run.training.steps * split.global_rows, run.training.seed)
    sources = {}
    for source, weight in zip(mixture.sources, mixture.weights.tolist()):
        rows_per_step = split.global_rows * weight / int(mixture.weights.sum())
        sources[f"source {source.name}"] = (
            f"weight {weight:,}, {source.shards.num_rows:,} rows in {source.shards.path}: steps per epoch "
            f"{source.shards.num_rows / rows_per_step:,.1f}, epochs in total {epochs[source.name]:,.2f}"
        )
    lines = {
        "parameters": f"{derived.parameter_count(model):,}",
        "devices": f"{world_size}, ZeRO stage {ds_config.stage(zero)}, {precision}",
        "tokens per step": f"{run.training.global_batch_tokens:,} = {rows}: {share}",
        "steps": f"{run.training.steps:,}",
        **sources,
        **{f"validation {name}": f"{opened.num_rows:,} rows in {opened.path}" for name, opened in sets.items()},
        **{f"memory, {part}": f"about {size / 2**30:,.2f} GiB per device" for part, size in memory.items()},
    }
    print(run.to_yaml())
    for name, text in lines.items():
        print(f"{name:<44}{text}")
    for text in overlap.warnings(mixture, sets):
        print(f"warning: {text}", file=sys.stderr)
