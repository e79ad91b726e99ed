"""The mixture of sources against its definition, position by position."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify_ds import config
from amplify_ds.data.mixture import MAX_CYCLE, Mixture, consumed, sources_at
from amplify_ds.data.order import permute, rows_at
from amplify_ds.data.shards import Shards
from amplify_ds.errors import AmplifyError
from amplify_ds.training import derived
from tests.support.fake_source import fake

PUBLISHED = [15134, 136, 1]  # UniProt, SCOP, OAS


def by_definition(position, weights, seed):
    cycle, within = divmod(position, sum(weights))
    slot = int(permute(np.array([within]), sum(weights), (seed, cycle, 2**32))[0])
    for source, weight in enumerate(weights):
        if slot < weight:
            return source, cycle * weight + slot
        slot -= weight


@pytest.mark.parametrize("weights", [[1], [3, 1, 2], PUBLISHED])
def test_every_position_is_as_defined(weights):
    positions = np.concatenate([np.arange(40), 10**12 + np.arange(40) * 7919])
    sources, indices = sources_at(positions, np.array(weights), 5)
    assert (sources.dtype, indices.dtype) == (np.int64, np.int64)
    assert list(zip(sources.tolist(), indices.tolist())) == [by_definition(p, weights, 5) for p in positions.tolist()]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 2**63 - 1), st.integers(0, 2**30))
def test_every_cycle_reads_each_source_by_its_weight_and_every_index_once(weights, seed, cycle):
    size = sum(weights)
    sources, indices = sources_at(np.arange(cycle * size, (cycle + 2) * size), np.array(weights), seed)
    for half in (slice(0, size), slice(size, None)):
        assert np.bincount(sources[half], minlength=len(weights)).tolist() == weights
    for source, weight in enumerate(weights):
        assert sorted(indices[sources == source]) == list(range(cycle * weight, (cycle + 2) * weight))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 400))
def test_consumed_counts_the_rows_before_a_position(weights, position):
    sources, _ = sources_at(np.arange(position), np.array(weights), 3)
    assert consumed(position, np.array(weights), 3).tolist() == np.bincount(sources, minlength=len(weights)).tolist()


def test_consumed_is_exact_far_away():
    weights = np.array(PUBLISHED)
    start = 10**9 * int(weights.sum())
    sources, _ = sources_at(start + np.arange(5000), weights, 3)
    expected = 10**9 * weights + np.bincount(sources, minlength=3)
    assert consumed(start + 5000, weights, 3).tolist() == expected.tolist()


def test_sources_follow_no_pattern():
    """At each of 6 positions of 6,000 cycles source 0 is read half the time; cycles and seeds differ."""
    weights = np.array([3, 1, 2])
    sources = sources_at(np.arange(36_000), weights, 0)[0].reshape(6000, 6)
    assert np.abs((sources == 0).sum(0) - 3000).max() < 200  # standard deviation 39
    assert len(np.unique(sources, axis=0)) == math.factorial(6) / (6 * 2)
    other = sources_at(np.arange(36_000), weights, 1)[0]
    agreeing = (other == sources.ravel()).mean()
    assert abs(agreeing - (9 + 1 + 4) / 36) < 0.02


def test_a_single_source_is_read_in_its_order():
    mixture = Mixture([fake("a", weight=7)])
    positions = np.arange(35)
    stream = mixture.at(positions, 9)
    epochs, rows = rows_at(positions, 10, 9)
    assert stream.sources.tolist() == [0] * 35 and stream.indices.tolist() == positions.tolist()
    assert np.array_equal(stream.epochs, epochs) and np.array_equal(stream.rows, rows)


def test_every_source_has_its_own_epochs_and_order():
    mixture = Mixture([fake("a", 2, rows=10), fake("b", 1, rows=10), fake("c", 1, rows=3)])
    stream = mixture.at(np.arange(4 * 30), 9)
    orders = {}
    for source, (rows, epochs) in enumerate([(10, 6), (10, 3), (3, 10)]):
        selected = stream.sources == source
        order = np.argsort(stream.indices[selected])
        assert stream.epochs[selected][order].tolist() == [e for e in range(epochs) for _ in range(rows)]
        orders[source] = stream.rows[selected][order].reshape(epochs, rows)
        assert (np.sort(orders[source], axis=1) == np.arange(rows)).all()
    assert not any(np.array_equal(a, b) for a in orders[0] for b in orders[1]), "equal sizes, the same order"
    assert mixture.epochs(60, 9) == {
        name: (stream.sources[:60] == i).sum() / size for i, (name, size) in enumerate([("a", 10), ("b", 10), ("c", 3)])
    }


def test_weights_are_in_lowest_terms_and_bound_with_names_and_fingerprints():
    mixture = Mixture([fake("a", 30), fake("b", 12, max_length=6)])
    assert mixture.weights.tolist() == [5, 2] and mixture.max_length == 6 and mixture.row_tokens == 8
    assert mixture.binding() == [
        {"name": "a", "weight": 5, "fingerprint": "sha of a"},
        {"name": "b", "weight": 2, "fingerprint": "sha of b"},
    ]


def test_sources_that_cannot_be_mixed_are_refused():
    with pytest.raises(AmplifyError, match=r"rows of a \(/a\) have 8 tokens, those of b \(/b\) 16"):
        Mixture([fake("a"), fake("b", row_tokens=16)])
    with pytest.raises(AmplifyError, match="in lowest terms, add up to 100,001; the limit is 100,000"):
        Mixture([fake("a", MAX_CYCLE), fake("b")])
    assert Mixture([fake("a", 10**30), fake("b", 3 * 10**30)]).weights.tolist() == [1, 3]


def sources_of(*entries):
    mixture = derived.training_sources(config.resolve("tiny", None, {"data.train": list(entries)}))
    return [(source.name, source.weight, str(source.shards.path)) for source in mixture.sources]


def test_name_directory_and_weight_are_parsed(shards, tmp_path, monkeypatch):
    train = shards["train"]
    assert sources_of(str(train)) == [("train", 1, str(train))]
    assert sources_of(f"a={train}:15134", f"{train}:3", f"c={train}") == [
        ("a", 15134, str(train)),
        ("train", 3, str(train)),
        ("c", 1, str(train)),
    ]
    for name in ("with:colon", "lr=3", "v:12"):
        (tmp_path / name).symlink_to(train)
    odd = str(tmp_path)
    assert sources_of(f"{odd}/with:colon") == [("with:colon", 1, f"{odd}/with:colon")]
    assert sources_of(f"{odd}/lr=3:2", f"x={odd}/lr=3") == [("lr=3", 2, f"{odd}/lr=3"), ("x", 1, f"{odd}/lr=3")]
    assert sources_of(f"{odd}/v:12:4") == [("v:12", 4, f"{odd}/v:12")]
    monkeypatch.chdir(train)
    assert sources_of(".") == [("train", 1, ".")]
    monkeypatch.chdir(tmp_path)
    assert sources_of("./lr=3") == [("lr=3", 1, "lr=3")]


@pytest.mark.parametrize(
    "entries, text",
    [
        (["{0}", "{0}"], "data.train: the name train appears twice; give one another name, as in first="),
        (["{0}:0"], "must be 1 or more"),
        (["{0}:0.5"], "must be a whole number"),
        (["{0}:-3"], "there is no directory"),
        (["=x"], "expected [NAME=]DIR"),
        (["x="], "expected [NAME=]DIR"),
    ],
)
def test_bad_sources_are_refused(shards, entries, text):
    with pytest.raises(AmplifyError) as error:
        sources_of(*(entry.format(shards["train"]) for entry in entries))
    assert text in str(error.value), str(error.value)


def test_validation_sets_need_different_names(shards):
    def sets(*entries):
        return derived.validation_sets(config.resolve("tiny", None, {"data.validation": list(entries)}))

    path = shards["validation"]
    assert list(sets(str(path), f"other={path}")) == ["validation", "other"]
    with pytest.raises(AmplifyError, match="data.validation: the name validation appears twice"):
        sets(str(path), f"validation={shards['train']}")
    assert Shards(path).fingerprint == sets(str(path))["validation"].fingerprint
