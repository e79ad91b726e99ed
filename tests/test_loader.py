"""The batch of a step is the same for every number of ranks, micro batches and workers."""

import numpy as np
import pytest
import torch

from amplify_ds.data.loader import BatchPlan, TrainingBatches, evaluation_batches, training_loader
from amplify_ds.data.masking import IGNORED, PROTOCOLS
from amplify_ds.data.shards import Shards
from amplify_ds.vocab import BOS, EOS, MASK, PAD

SHARES = (0.15, 0.8, 0.1)
GLOBAL_ROWS = 8


@pytest.fixture(scope="module")
def opened(shards):
    return Shards(shards["train"])


def global_batch(opened, step, world_size, micro_rows):
    """All that the ranks read at a step, in stream order: (input_ids, labels by place in the batch)."""
    accumulation = GLOBAL_ROWS // world_size // micro_rows
    tokens, labels = [], []
    for rank in range(world_size):
        batches = TrainingBatches(
            opened, BatchPlan(GLOBAL_ROWS, micro_rows, accumulation, rank, world_size), 7, *SHARES
        )
        for part in range(accumulation):
            batch = batches[step * accumulation + part]
            there = torch.full_like(batch.input_ids, IGNORED)
            used = batch.labels != IGNORED
            there[batch.masked_positions[used]] = batch.labels[used]
            tokens.append(batch.input_ids)
            labels.append(there)
    return torch.cat(tokens), torch.cat(labels)


@pytest.mark.parametrize("step", [0, 5, 1000])
def test_the_global_batch_does_not_depend_on_how_it_is_cut(opened, step):
    expected = global_batch(opened, step, 1, GLOBAL_ROWS)
    for world_size, micro_rows in ((1, 1), (2, 4), (4, 2), (8, 1)):
        found = global_batch(opened, step, world_size, micro_rows)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_an_epoch_reads_every_row_once_and_the_next_masks_it_anew(opened):
    batches = TrainingBatches(opened, BatchPlan(1, 1, 1, 0, 1), 7, *SHARES)
    epochs = []
    for epoch in range(2):
        seen = {}
        for index in range(epoch * opened.num_rows, (epoch + 1) * opened.num_rows):
            batch = batches[index]
            original = batch.input_ids.clone()
            used = batch.labels != IGNORED
            original[batch.masked_positions[used]] = batch.labels[used]
            seen[original.numpy().astype(np.uint8).tobytes()] = batch.input_ids
        epochs.append(seen)
    rows = {opened.row(i)[0].tobytes() for i in range(opened.num_rows)}
    assert len(rows) == opened.num_rows and set(epochs[0]) == set(epochs[1]) == rows
    assert list(epochs[0]) != list(epochs[1])
    assert not any(torch.equal(epochs[0][row], epochs[1][row]) for row in rows)


def test_worker_processes_yield_the_same_stream_and_start_anywhere(opened):
    batches = TrainingBatches(opened, BatchPlan(4, 2, 2, 0, 1), 7, *SHARES)
    alone = [batch.input_ids for batch in training_loader(batches, 0, 5, 0, False)]
    shared = [batch.input_ids for batch in training_loader(batches, 0, 5, 2, False)]
    later = [batch.input_ids for batch in training_loader(batches, 3, 5, 0, False)]
    assert len(alone) == 10 and all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[6:], later, strict=True))


def test_packed_batch_describes_its_segments(opened):
    batch = TrainingBatches(opened, BatchPlan(4, 4, 1, 0, 1), 7, *SHARES)[0]
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(batch.input_ids) == 4 * opened.row_tokens and bounds == sorted(bounds)
    for a, b in zip(bounds, bounds[1:]):
        assert b - a <= batch.max_seqlen
        assert batch.position_ids[a:b].tolist() == list(range(b - a))
        assert not (batch.input_ids[a:b] == PAD).any() or (batch.input_ids[a:b] == PAD).all()
    assert batch.targets == (batch.labels != IGNORED).sum() == len(batch.labels)
    assert 0.14 < batch.targets / batch.residues < 0.16
    assert not np.isin(batch.labels.numpy(), [PAD, BOS, EOS, MASK]).any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluation_reads_every_window_once_whatever_the_number_of_ranks(opened, protocol):
    rows = 7
    windows = sum(len(opened.row(i)[1]) for i in range(rows))
    expected = None
    for world_size, micro_rows in ((1, 1), (2, 2), (3, 1)):
        counts, batches = np.zeros(windows, int), []
        for rank in range(world_size):
            items = list(evaluation_batches(opened, protocol, 0.15, rows, micro_rows, rank, world_size))
            batches.append(len(items))
            for item in items:
                if item.counted:
                    np.add.at(counts, item.windows, 1)
        assert len(set(batches)) == 1  # collective calls stay in step
        expected = counts if expected is None else expected
        assert np.array_equal(counts, expected) and counts.min() >= 1
