"""The batch of a step is the same for any number of ranks, micro batches and workers."""

from itertools import islice

import numpy as np
import pytest
import torch

from amplify_ds.data.loader import BatchSplit, TrainingBatches, evaluation_batches
from amplify_ds.data.masking import IGNORED, PROTOCOLS
from amplify_ds.data.mixture import Mixture, Source
from amplify_ds.data.shards import Shards
from amplify_ds.data.workers import TrainingLoader
from amplify_ds.vocab import BOS, EOS, MASK, PAD

SHARES = (0.15, 0.8, 0.1)
GLOBAL_ROWS = 8


@pytest.fixture(scope="module")
def opened(shards):
    return Shards(shards["train"])


@pytest.fixture(scope="module")
def alone(opened):
    return Mixture([Source("train", 1, opened)])


@pytest.fixture(scope="module")
def mixed(shards, opened):
    return Mixture([Source("train", 3, opened), Source("other", 2, Shards(shards["validation"]))])


def global_batch(mixture, step, world_size, micro_rows, skips=()):
    """Return what all ranks read at a step, in stream order: (input_ids, labels by position in the batch).

    Asserts that the rows after those of a rank are padding, without tokens or targets.
    """
    accumulation = -(-GLOBAL_ROWS // (world_size * micro_rows))
    tokens, labels = [], []
    for rank in range(world_size):
        split = BatchSplit(GLOBAL_ROWS, micro_rows, accumulation, rank, world_size)
        batches = TrainingBatches(mixture, split, 7, *SHARES, skips)
        for part in range(accumulation):
            batch = batches[step * accumulation + part]
            labels_here = torch.full_like(batch.input_ids, IGNORED)
            used = batch.labels != IGNORED
            labels_here[batch.masked_positions[used]] = batch.labels[used]
            end = min(micro_rows, max(0, len(split.share) - part * micro_rows)) * mixture.row_tokens
            assert not batch.input_ids[end:].any() and (labels_here[end:] == IGNORED).all()
            assert batch.tokens == (torch.where(labels_here == IGNORED, batch.input_ids, labels_here) != PAD).sum()
            tokens.append(batch.input_ids[:end])
            labels.append(labels_here[:end])
    return torch.cat(tokens), torch.cat(labels)


def rows_of(batch):
    """Return the rows of a global batch as on disk: bytes without masks."""
    tokens, labels = batch
    return [row.to(torch.uint8).numpy().tobytes() for row in torch.where(labels == IGNORED, tokens, labels).chunk(8)]


@pytest.mark.parametrize("kind", ["alone", "mixed", "skipped"])
@pytest.mark.parametrize("step", [0, 5, 1000])
def test_the_global_batch_does_not_depend_on_how_it_is_split(request, kind, step):
    mixture = request.getfixturevalue("alone" if kind == "alone" else "mixed")
    skips = []
    if kind == "skipped":  # two rows of this batch
        found = mixture.at(step * GLOBAL_ROWS + np.arange(GLOBAL_ROWS), 7)
        skips = [
            {"source": mixture.names[found.sources[i]], "row": int(found.rows[i]), "from": step - i} for i in (0, 3)
        ]
    expected = global_batch(mixture, step, 1, GLOBAL_ROWS, skips)
    for world_size, micro_rows in ((1, 1), (2, 4), (2, 1), (4, 2), (8, 1), (3, 3), (3, 2), (5, 1), (6, 2), (7, 1)):
        found = global_batch(mixture, step, world_size, micro_rows, skips)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    if skips:
        plain = rows_of(global_batch(mixture, step, 1, GLOBAL_ROWS))
        changed = [i for i, (a, b) in enumerate(zip(rows_of(expected), plain)) if a != b]
        assert {0, 3} <= set(changed) and len(changed) < GLOBAL_ROWS
        for i in (0, 3):
            assert plain[i] not in rows_of(expected)


def test_the_rows_are_those_of_the_mixture(mixed):
    for step in (0, 5, 1000):
        found = mixed.at(step * GLOBAL_ROWS + np.arange(GLOBAL_ROWS), 7)
        named = [mixed.sources[s].shards.row(int(r))[0].tobytes() for s, r in zip(found.sources, found.rows)]
        assert rows_of(global_batch(mixed, step, 2, 2)) == named


def test_equal_rows_of_two_sources_have_different_masks(opened):
    """The same row of the same epoch is masked differently in two sources with the same shards."""
    mixture = Mixture([Source("a", 1, opened), Source("b", 1, opened)])
    batches = TrainingBatches(mixture, BatchSplit(1, 1, 1, 0, 1), 7, *SHARES)
    masks = {}
    for index in range(2 * opened.num_rows):
        source, row = int(batches.rows(index).sources[0]), int(batches.rows(index).rows[0])
        masks[source, row] = batches[index].masked_positions
    assert len(masks) == 2 * opened.num_rows
    assert not any(torch.equal(masks[0, row], masks[1, row]) for row in range(opened.num_rows))


def test_an_epoch_reads_every_row_once_and_the_next_has_new_masks(opened, alone):
    batches = TrainingBatches(alone, BatchSplit(1, 1, 1, 0, 1), 7, *SHARES)
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


@pytest.mark.parametrize("skipped", [False, True])
def test_worker_processes_yield_the_same_stream_and_start_anywhere(mixed, skipped):
    skips = [{"source": "train", "row": row, "from": 2} for row in range(20)] if skipped else []
    batches = TrainingBatches(mixed, BatchSplit(4, 2, 2, 0, 1), 7, *SHARES, skips)

    def read(first: int, count: int, workers: int) -> list[torch.Tensor]:
        with TrainingLoader(batches, first, workers, False) as loader:
            return [batch.input_ids for batch in islice(loader, count)]

    alone, shared, later = read(0, 10, 0), read(0, 10, 2), read(3, 4, 0)
    assert len(alone) == 10 and all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[6:], later, strict=True))


def test_packed_batch_describes_its_segments(opened, alone):
    batch = TrainingBatches(alone, BatchSplit(4, 4, 1, 0, 1), 7, *SHARES)[0]
    tokens = batch.input_ids.clone()
    tokens[batch.masked_positions] = batch.labels  # a random token may be <pad>
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(batch.input_ids) == 4 * opened.row_tokens and bounds == sorted(bounds)
    for a, b in zip(bounds, bounds[1:]):
        assert b - a <= batch.max_seqlen
        assert batch.position_ids[a:b].tolist() == list(range(b - a))
        assert not (tokens[a:b] == PAD).any() or (tokens[a:b] == PAD).all()
    assert batch.targets == (batch.labels != IGNORED).sum() == len(batch.labels)
    assert (batch.cu_seqlens.dtype, batch.position_ids.dtype, batch.labels.dtype) == (
        torch.int32,
        torch.int64,
        torch.int64,
    )
    assert batch.tokens == (tokens != PAD).sum() and batch.residues == (tokens > EOS).sum()
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
