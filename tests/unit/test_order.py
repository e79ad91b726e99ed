"""The training order: every epoch is a permutation; different keys give different, about equally likely ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds.data.order import permute, rows_at


@pytest.mark.parametrize("size", [*range(1, 130), 1000, 4095, 4096, 4097, 100_003])
def test_is_a_permutation(size):
    image = permute(np.arange(size), size, (7, size))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(size))


@given(st.integers(1, 2**40), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_stays_in_range_and_distinct_at_any_size(size, seed, epoch):
    index = np.unique(np.linspace(0, size - 1, 50).astype(np.int64))
    image = permute(index, size, (seed, epoch))
    assert image.min() >= 0 and image.max() < size
    assert len(np.unique(image)) == len(index)


def test_one_key_for_each_index_is_the_same_as_one_at_a_time():
    epochs = np.arange(40) // 3
    together = permute(np.arange(40) % 11, 11, (5, epochs))
    assert together.tolist() == [permute(np.array([i % 11]), 11, (5, epochs[i]))[0] for i in range(40)]


def test_every_epoch_reads_every_row_once_in_its_own_order():
    epochs, rows = rows_at(np.arange(1000, 4000), 1000, seed=3)
    assert epochs.tolist() == [1] * 1000 + [2] * 1000 + [3] * 1000
    orders = rows.reshape(3, 1000)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(1000), (3, 1)))
    agreeing = [(orders[i] == orders[j]).sum() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(agreeing) < 12  # about 1 for independent permutations


def test_seeds_and_key_order_matter():
    index = np.arange(1000)
    images = [permute(index, 1000, key) for key in ((1, 2), (2, 1), (1, 3), (1,), (1, 2, 0))]
    agreeing = [(a == b).sum() for i, a in enumerate(images) for b in images[:i]]
    assert max(agreeing) < 12


def test_the_images_of_two_rows_are_uniform():
    """Over 12,000 keys, the images of 0 and 1 among 4 values: 12 pairs, 1,000 each (standard deviation 30)."""
    keys = np.arange(12_000)
    first = permute(np.zeros_like(keys), 4, (1, keys))
    second = permute(np.ones_like(keys), 4, (1, keys))
    counts = np.bincount(first * 4 + second, minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    assert np.abs(counts[~np.eye(4, dtype=bool)] - 1000).max() < 150


def test_images_of_neighbours_are_uncorrelated():
    image = permute(np.arange(100_000), 100_000, (0, 0)).astype(float)
    assert abs(np.corrcoef(image, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.02
