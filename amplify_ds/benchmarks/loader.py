"""Measure how fast one core makes training batches: `python -m amplify_ds.benchmark loader`.

Ours: `TrainingLoader` in the training process, from shards on disk to a packed batch with its masks as tensors, in
micro batches as those of the recipe 120M (10 rows of 8,192 tokens, windows of at most 512). Beside it Hugging Face's
`DataCollatorForLanguageModeling` on the windows of the same rows: our tokenizer, 15 % masked, padded to the longest, as
many windows a batch as ours hold, given as lists of ids; tokenizing them is not in the time. Both are held to one core
and take turns, so that what else the machine does meets both; real tokens are counted, no padding.

The shards are made by data_prep/build_shards.py of resampled proteins, as for `prep`, unless --data names others.
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
_BATCHES = 60  # of ours in a turn, and of the collator's: about a second each
_COLLATED = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="shards to read (default: made for the purpose)")
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="of each (default: 7)")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to make shards (default: the temporary directory)"
    )


def run(options: argparse.Namespace) -> None:
    if options.turns < 1:
        raise AmplifyError("--turns must be at least 1")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.directory) as place:
        _compare(Shards(options.data or prep.make_shards(Path(place), 40_000_000)), options.turns)


def _compare(shards: Shards, turns: int) -> None:
    import torch

    from amplify_ds.data.loader import BatchSplit, TrainingBatches
    from amplify_ds.data.workers import TrainingLoader

    torch.set_num_threads(1)
    split = BatchSplit(_MICRO_ROWS, _MICRO_ROWS, 1, 0, 1)
    batches = TrainingBatches(Mixture([Source("train", 1, shards)]), split, 0, 0.15, 0.8, 0.1)
    collate, windows = _collator(batches)

    def ours(first: int) -> int:
        return sum(batch.tokens for batch in islice(TrainingLoader(batches, first, 0, False), _BATCHES))

    def theirs(first: int) -> int:
        return sum(int((collate(some)["input_ids"] != collate.tokenizer.pad_token_id).sum()) for some in windows)

    speeds: dict = {ours: [], theirs: []}
    with one_core():
        for turn in range(turns + 1):
            for work, found in speeds.items():
                began = time.perf_counter()
                tokens = work(turn * _BATCHES)
                if turn:  # the first warms up
                    found.append(tokens / (time.perf_counter() - began))
    own, other = (np.median(found) for found in speeds.values())
    ratios = np.divide(speeds[ours], speeds[theirs])
    print(f"training batches of {_MICRO_ROWS} rows of {shards.row_tokens:,} tokens, masks included, one core")
    lines = [
        ("this loader", f"{own / 1e6:.1f} million tokens/s {_range(speeds[ours], 1e6)}"),
        ("DataCollatorForLanguageModeling", f"{other / 1e6:.2f} million tokens/s {_range(speeds[theirs], 1e6, 2)}"),
        ("  times slower", f"{np.median(ratios):.0f} {_range(ratios, 1, 0)}"),
    ]
    print(table(lines))


def _range(found: list[float], unit: float, digits: int = 1) -> str:
    return f"({min(found) / unit:.{digits}f} to {max(found) / unit:.{digits}f} in {len(found)} turns)"


def _collator(batches):
    """The collator, and the windows of the rows of the first batches as it takes them: lists of lists of ids."""
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    from amplify_ds.hub.tokenizer import build_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask", "bos", "eos")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), **names)
    windows = []
    for index in range(_COLLATED):
        some = []
        for row in batches.rows(index).rows.tolist():
            tokens, lengths = batches.mixture.sources[0].shards.row(row)
            some += [{"input_ids": window.tolist()} for window in np.split(tokens, np.cumsum(lengths))[:-1]]
        windows.append(some)
    return DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.15, return_tensors="pt"), windows
