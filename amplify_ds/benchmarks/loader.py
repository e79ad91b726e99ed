"""Measure how fast one core makes training batches: `python -m amplify_ds.benchmark loader`.

`TrainingLoader` reads shards from disk in the training process and makes packed batches with masks, as tensors, in
micro batches of the recipe 120M (10 rows of 8,192 tokens, windows of at most 512). It is compared with Hugging Face's
`DataCollatorForLanguageModeling` on the windows of the same rows, given as lists of ids: our tokenizer, 15 % masked,
padded to the longest, the same number of windows per batch. Tokenizing is not timed. Both run on one core and take
turns, so that other load on the machine affects both. Speeds count real tokens, without padding.

By default the shards are built from resampled proteins, as in `prep`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from amplify_ds.benchmarks import prep
from amplify_ds.benchmarks.common import one_core, table
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError

_MICRO_ROWS = 10
_BATCHES = 60  # of our loader per turn: about a second
_COLLATED = 12  # of the collator per turn: about a second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="shards to read (default: built from resampled proteins)"
    )
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="measurements of each (default: 7)")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to make shards (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if options.turns < 1:
        raise AmplifyError("--turns must be at least 1")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as directory:
        _compare(Shards(options.data or prep.make_shards(Path(directory), 40_000_000)), options.turns)


def _compare(shards: Shards, turns: int) -> None:
    import torch

    from amplify_ds.data.loader import BatchSplit, TrainingBatches
    from amplify_ds.data.workers import TrainingLoader

    torch.set_num_threads(1)
    split = BatchSplit(_MICRO_ROWS, _MICRO_ROWS, 1, 0, 1)
    batches = TrainingBatches(Mixture([Source("train", 1, shards)]), split, 0, 0.15, 0.8, 0.1)
    collate, windows = _collator(batches)

    def training_loader(first: int) -> int:
        return sum(batch.tokens for batch in islice(TrainingLoader(batches, first, 0, False), _BATCHES))

    def collator(first: int) -> int:
        return sum(int((collate(batch)["input_ids"] != collate.tokenizer.pad_token_id).sum()) for batch in windows)

    speeds: dict = {training_loader: [], collator: []}
    with one_core():
        for turn in range(turns + 1):
            for make_batches, values in speeds.items():
                began = time.perf_counter()
                tokens = make_batches(turn * _BATCHES)
                if turn:  # the first turn is a warm-up
                    values.append(tokens / (time.perf_counter() - began))
    loader_speed, collator_speed = (np.median(values) for values in speeds.values())
    ratios = np.divide(speeds[training_loader], speeds[collator])
    print(f"training batches of {_MICRO_ROWS} rows of {shards.row_tokens:,} tokens, masks included, one core")
    lines = [
        ("this loader", f"{loader_speed / 1e6:.1f} million tokens/s {_range(speeds[training_loader], 1e6)}"),
        (
            "DataCollatorForLanguageModeling",
            f"{collator_speed / 1e6:.2f} million tokens/s {_range(speeds[collator], 1e6, 2)}",
        ),
        ("  times slower", f"{np.median(ratios):.0f} {_range(ratios, 1, 0)}"),
    ]
    print(table(lines))


def _range(values: list[float], unit: float, digits: int = 1) -> str:
    return f"({min(values) / unit:.{digits}f} to {max(values) / unit:.{digits}f} in {len(values)} turns)"


def _collator(batches):
    """Return Hugging Face's collator and the windows of the first batches in its input format."""
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    from amplify_ds.hub.tokenizer import build_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask", "bos", "eos")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), **names)
    windows = []
    for index in range(_COLLATED):
        batch = []
        for row in batches.rows(index).rows.tolist():
            tokens, lengths = batches.mixture.sources[0].shards.row(row)
            batch += [{"input_ids": window.tolist()} for window in np.split(tokens, np.cumsum(lengths))[:-1]]
        windows.append(batch)
    return DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.15, return_tensors="pt"), windows
