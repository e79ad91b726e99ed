"""What follows from a configuration before anything starts: the cut of the batch, the model's shape, memory.

`--dry-run` prints it; the trainer uses it.
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
    """Cut the global batch into rows, ranks and micro batches.

    Any number of devices up to the number of rows shares a batch, and a micro batch has at most
    training.micro_batch_rows rows. Raises AmplifyError, with a batch that suits rows and devices, unless the batch is a
    whole number of rows and gives each device at least one.
    """
    tokens = run.training.global_batch_tokens
    rows, rest = divmod(tokens, row_tokens)
    if rest or rows < world_size:
        even = row_tokens * world_size
        devices = "1 device" if world_size == 1 else f"{world_size} devices"
        raise AmplifyError(
            f"training.global_batch_tokens is {tokens:,}, but rows of the training shards have {row_tokens:,} tokens, "
            f"and {devices} must get whole rows, each at least one: set it to a multiple of {row_tokens:,} from "
            f"{even:,} on, such as --training.global_batch_tokens {max(1, round(tokens / even)) * even}"
        )
    most = -(-rows // world_size)  # rows of a rank, if they do not divide
    accumulation = -(-most // run.training.micro_batch_rows)
    return BatchSplit(rows, -(-most // accumulation), accumulation, rank, world_size)


def model_config(run: RunConfig, max_length: int) -> Shape:
    try:
        return Shape(**run.model.model_dump(), max_length=max_length)
    except ValueError as error:
        raise AmplifyError(str(error)) from None


def parameter_count(config: Shape) -> int:
    """Of the encoder, its embedding and its decoder: 118,276,507 for the 120M, 354,008,667 for the 350M."""
    size, vocabulary = config.hidden_size, config.vocab_size
    layer = 4 * size * size + 3 * size * config.ffn_size + 2 * size
    return config.num_hidden_layers * layer + 2 * vocabulary * size + size + vocabulary


def resolve_precision(asked: str, device_type: str) -> str:
    return asked if asked != "auto" else "fp32" if device_type == "cpu" else "bf16"


def training_sources(run: RunConfig) -> Mixture:
    """Open [NAME=]DIR[:WEIGHT] of data.train. Only whole digits after the last colon are a weight."""
    weights, entries = [], []
    for entry in run.data.train:
        found = re.fullmatch(r"(.+):(\d+)", entry)
        weights.append(int(found[2]) if found else 1)
        entries.append(found[1] if found else entry)
        if weights[-1] < 1:
            raise AmplifyError(f"data.train: the weight of {entry} must be 1 or more; leave a source out to not use it")
        if re.search(r":\d*\.\d+$", entry) and not Path(entry).exists():
            raise AmplifyError(f"data.train: the weight of {entry} must be a whole number; 0.7 to 0.3 is 7 to 3")
    names = _opened("data.train", entries)
    return Mixture([Source(name, weight, shards) for (name, shards), weight in zip(names.items(), weights)])


def validation_sets(run: RunConfig) -> dict[str, Shards]:
    """Open [NAME=]DIR of data.validation."""
    return _opened("data.validation", run.data.validation)


def _opened(setting: str, entries: list[str]) -> dict[str, Shards]:
    """[NAME=]DIR -> {name: opened shards}; what stands before the first equals sign is a name unless it has a slash.

    So a path with an equals sign in it can be given: `a=1/shards` as `./a=1/shards`.
    """
    opened: dict[str, Shards] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name:
            name, path = Path(os.path.abspath(entry)).name, entry
        if not name or not path:
            raise AmplifyError(f"{setting}: expected [NAME=]DIR, found {entry!r}")
        if name in opened:
            raise AmplifyError(f"{setting}: two of them are called {name}; name them, as in first={path}")
        opened[name] = Shards(path)
    return opened


def memory_per_device(
    run: RunConfig, config: Shape, row_tokens: int, stage: int, world_size: int, precision: str
) -> dict[str, int]:
    """Estimated bytes: {"weights, gradients and optimizer": …, "activations": …}.

    Weights and gradients cost 4 bytes each in float32 (2 and 4 in bf16 and fp8, with a float32 copy of the weights
    beside the moments); AdamW's moments 8, NorMuon's too. ZeRO 1 divides moments and copy over the ranks, 2 gradients
    too, 3 weights too. For backward a block keeps 8 values of width H and 3 of width F a token on a CPU (counted by
    tests/unit/test_elementwise.py), on a GPU 4 more of H, read off the code: queries and keys before they are turned,
    quotients of the norms before the weight. With checkpointing its input alone, and one block's at a time.
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
