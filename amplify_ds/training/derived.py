"""Values that follow from a configuration: the split of the batch, the model's shape, sources and memory.

`--dry-run` prints them, and the trainer uses them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from amplify_ds.config import RunConfig
from amplify_ds.data.loader import BatchSplit
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.model.shape import Shape


def split_batch(run: RunConfig, row_tokens: int, rank: int, world_size: int) -> BatchSplit:
    """Return the split of the global batch into ranks and micro batches.

    Any number of devices up to the number of rows can share a batch, and a micro batch has at most
    training.micro_batch_rows rows. Raises AmplifyError, which suggests a valid batch size, unless the batch is a whole
    number of rows with at least one per device.
    """
    tokens = run.training.global_batch_tokens
    rows, rest = divmod(tokens, row_tokens)
    if rest or rows < world_size:
        even = row_tokens * world_size
        devices = "1 device" if world_size == 1 else f"{world_size} devices"
        raise AmplifyError(
            f"training.global_batch_tokens is {tokens:,}, but rows of the training shards have {row_tokens:,} tokens "
            f"and {devices} need at least one whole row each: set it to a multiple of {row_tokens:,} that is at least "
            f"{even:,}, such as --training.global_batch_tokens {max(1, round(tokens / even)) * even}"
        )
    most = -(-rows // world_size)  # rows of a rank, rounded up
    accumulation = -(-most // run.training.micro_batch_rows)
    return BatchSplit(rows, -(-most // accumulation), accumulation, rank, world_size)


def model_config(run: RunConfig, max_length: int) -> Shape:
    """Return the shape of the model. Raises AmplifyError if its sizes are invalid."""
    try:
        return Shape(**run.model.model_dump(), max_length=max_length)
    except ValueError as error:
        raise AmplifyError(str(error)) from None


def parameter_count(config: Shape) -> int:
    """Return the number of parameters with embedding and decoder: 118,276,507 for 120M, 354,008,667 for 350M."""
    size, vocabulary = config.hidden_size, config.vocab_size
    layer = 4 * size * size + 3 * size * config.ffn_size + 2 * size
    return config.num_hidden_layers * layer + 2 * vocabulary * size + size + vocabulary


def resolve_precision(precision: str, device_type: str) -> str:
    """Return the precision to train in; "auto" is fp32 on CPUs and bf16 on GPUs."""
    return precision if precision != "auto" else "fp32" if device_type == "cpu" else "bf16"


def training_sources(run: RunConfig) -> Mixture:
    """Return the mixture of the sources in data.train, given as [NAME=]DIR[:WEIGHT].

    Only digits after the last colon are a weight. Raises AmplifyError if a weight or a directory is invalid.
    """
    weights, entries = [], []
    for entry in run.data.train:
        match = re.fullmatch(r"(.+):(\d+)", entry)
        weights.append(int(match[2]) if match else 1)
        entries.append(match[1] if match else entry)
        if weights[-1] < 1:
            raise AmplifyError(f"data.train: the weight of {entry} must be 1 or more; omit a source to not use it")
        if re.search(r":\d*\.\d+$", entry) and not Path(entry).exists():
            raise AmplifyError(
                f"data.train: the weight of {entry} must be a whole number; write 0.7 and 0.3 as 7 and 3"
            )
    opened = _open_all("data.train", entries)
    return Mixture([Source(name, weight, shards) for (name, shards), weight in zip(opened.items(), weights)])


def validation_sets(run: RunConfig) -> dict[str, Shards]:
    """Return {name: shards} of the validation sets in data.validation, [NAME=]DIR."""
    return _open_all("data.validation", run.data.validation)


def _open_all(setting: str, entries: list[str]) -> dict[str, Shards]:
    """Return {name: shards} for entries [NAME=]DIR. Text before the first equals sign is a name unless it has a slash.

    A path with an equals sign can therefore be given with a slash in front of it: `a=1/shards` as `./a=1/shards`.
    """
    opened: dict[str, Shards] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name:
            name, path = Path(os.path.abspath(entry)).name, entry
        if not name or not path:
            raise AmplifyError(f"{setting}: expected [NAME=]DIR, found {entry!r}")
        if name in opened:
            raise AmplifyError(f"{setting}: the name {name} appears twice; give one another name, as in first={path}")
        opened[name] = Shards(path)
    return opened


def memory_per_device(
    run: RunConfig, config: Shape, row_tokens: int, stage: int, world_size: int, precision: str
) -> dict[str, int]:
    """Return the estimated memory per device in bytes: {"weights, gradients and optimizer": …, "activations": …}.

    Per parameter, weights and gradients take 4 bytes each in float32 (in bf16 and fp8 2 and 4, plus a float32 copy of
    the weights), and the moments of AdamW or NorMuon 8. ZeRO 1 divides moments and copy over the ranks, ZeRO 2 also
    gradients, ZeRO 3 also weights. For the backward pass a block keeps 8 values of width H and 3 of width F per token
    on a CPU (counted by tests/unit/test_elementwise.py). On a GPU it keeps 4 more of width H, according to the code:
    queries and keys before rotation, and the quotients of the norms before the weight. With activation checkpointing, a
    block keeps only its input, and one block at a time is recomputed.
    """
    count, wide = parameter_count(config), 4 if precision == "fp32" else 2
    optimizer = 8 * count + (4 * count if precision != "fp32" or stage else 0)
    gradients, weights = 4 * count, wide * count
    share = {0: (1, 1, 1), 1: (world_size, 1, 1), 2: (world_size, world_size, 1), 3: (world_size,) * 3}[stage]
    states = optimizer / share[0] + gradients / share[1] + weights / share[2]
    tokens = run.training.micro_batch_rows * row_tokens
    block = tokens * wide * (12 * config.hidden_size + 3 * config.ffn_size)
    kept = block * config.num_hidden_layers
    if run.training.activation_checkpointing:
        kept = block + tokens * wide * config.hidden_size * config.num_hidden_layers
    return {"weights, gradients and optimizer": int(states), "activations": int(kept)}
