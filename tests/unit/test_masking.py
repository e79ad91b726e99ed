"""Masks against an independent computation (Philox and the choice in plain Python) and the published shares."""

import hashlib

import numpy as np
import pytest

from amplify_ds.data.masking import mask_row, mask_windows, masked_per_row
from amplify_ds.vocab import BOS, EOS, MASK, PAD

ROW_TOKENS = 2048


def make_row(seed: int, filled: int = ROW_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """A row of random proteins: tokens [2048] with `filled` of them not <pad>, and its windows' lengths."""
    draw = np.random.RandomState(seed)
    lengths: list[int] = []
    tokens = np.full(ROW_TOKENS, PAD, dtype=np.uint8)
    while sum(lengths) < filled:
        length = min(draw.randint(3, 400), filled - sum(lengths))
        start = sum(lengths)
        tokens[start : start + length] = draw.randint(5, 27, length)
        tokens[start] = BOS
        if length > 1:
            tokens[start + length - 1] = EOS
        lengths.append(length)
    return tokens, np.array(lengths, dtype=np.uint16)


def is_eligible(tokens: np.ndarray) -> np.ndarray:
    return ~np.isin(tokens, [PAD, BOS, EOS])


def philox_by_definition(key: int):
    """Philox4x64-10 (Salmon and others, 2011), four numbers per block; as in NumPy, the counter starts at 1."""
    word = 2**64 - 1
    counter = 0
    while True:
        counter += 1
        block, low, high = [counter, 0, 0, 0], key & word, key >> 64
        for _ in range(10):
            a, b = block[0] * 0xD2E7470EE14C6C93, block[2] * 0xCA5A826395121157
            block = [b >> 64 ^ block[1] ^ low, b & word, a >> 64 ^ block[3] ^ high, a & word]
            low, high = (low + 0x9E3779B97F4A7C15) & word, (high + 0xBB67AE8584CAA73B) & word
        yield from block


def mask_by_definition(tokens: list[int], key: bytes, count: int, mask_share: float, random_share: float):
    draws = philox_by_definition(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little"))
    eligible = [position for position, token in enumerate(tokens) if token not in (0, 3, 4)]
    tickets = b"".join(next(draws).to_bytes(8, "little") for _ in range(-(-len(tokens) // 8)))
    last = sorted(tickets[position] for position in eligible)[count - 1]
    second = {position: next(draws) for position in eligible if tickets[position] == last}
    chosen = sorted(sorted(eligible, key=lambda position: (tickets[position], second.get(position, 0)))[:count])
    masked = list(tokens)
    for position in chosen:
        upper, lower = divmod(next(draws), 2**32)
        if upper / 2**32 < mask_share:
            masked[position] = 2
        elif upper / 2**32 < mask_share + random_share:
            masked[position] = lower * 27 // 2**32
    return masked, chosen


@pytest.mark.parametrize("key", [(0, 0, 0), (1, 2, 3), (2**40, 0, 931)])
def test_training_mask_agrees_with_its_definition(key):
    tokens, _ = make_row(5)
    before = tokens.copy()
    input_ids, positions, labels = mask_row(tokens, key, 300, 0.15)
    masked, chosen = mask_by_definition(tokens.tolist(), ",".join(map(str, key)).encode(), 300, 0.8, 0.1)
    assert input_ids.tolist() == masked and positions.tolist() == chosen
    assert labels.tolist() == [tokens[position] for position in chosen]
    assert (input_ids.dtype, positions.dtype, labels.dtype) == (np.uint8, np.int64, np.int64)
    assert np.array_equal(tokens, before)


@pytest.mark.parametrize("protocol, shares", [("published", (0.8, 0.1)), ("mask_only", (1.0, 0.0))])
def test_evaluation_mask_agrees_with_its_definition(protocol, shares):
    tokens, lengths = make_row(6, filled=1900)
    input_ids, positions, labels = mask_windows(tokens, lengths, 0.15, protocol)
    expected, expected_positions = tokens.tolist(), []
    start = 0
    for length in lengths.tolist():
        window = tokens[start : start + length]
        eligible = int(is_eligible(window).sum())
        count = max(1, round(0.15 * eligible)) if eligible else 0
        masked, chosen = mask_by_definition(window.tolist(), window.tobytes(), count, *shares)
        expected[start : start + length] = masked
        expected_positions += [start + position for position in chosen]
        start += length
    assert input_ids.tolist() == expected and positions.tolist() == expected_positions
    assert labels.tolist() == tokens[expected_positions].tolist()


def test_every_row_at_least_91_percent_as_full_as_the_mean_has_k_targets():
    rows = [make_row(seed, filled)[0] for seed, filled in enumerate([2048, 2040, 2048, 1000])]
    counts = sum(np.bincount(row, minlength=27) for row in rows)
    counts[PAD] = 0
    eligible = [int(is_eligible(row).sum()) for row in rows]
    slots = masked_per_row([{"token_counts": counts.tolist(), "counts": {"rows": 4}}], [1], 0.15)
    assert slots == round(0.15 * sum(eligible) / 4)
    for row, total in zip(rows, eligible):
        _, positions, labels = mask_row(row, (0, 0, 0), slots, 0.15)
        used = slots if total >= 0.91 * sum(eligible) / 4 else round(1.1 * 0.15 * total)
        assert len(positions) == len(labels) == slots
        assert is_eligible(row)[positions[:used]].all() and (np.diff(positions[:used]) > 0).all()
        assert (labels[:used] >= 0).all()
        assert (positions[used:] == 0).all() and (labels[used:] == -100).all()
    assert eligible[3] < 0.91 * sum(eligible) / 4  # so unused slots were tested


def test_k_of_several_sources_is_weighted_as_they_are_mixed():
    def manifest(residues, rows):
        return {"token_counts": [7, 0, 0, 5, 5, *[0] * 21, residues], "counts": {"rows": rows}}

    full, half = manifest(9000, 9), manifest(1500, 3)
    assert masked_per_row([full], [1], 0.15) == masked_per_row([full], [6], 0.15) == 150
    assert masked_per_row([full, half], [1, 1], 0.15) == round(0.15 * (1000 + 500) / 2)
    assert masked_per_row([full, half], [1, 9], 0.15) == round(0.15 * (1000 + 9 * 500) / 10)


@pytest.mark.parametrize("fraction", [0.15, 1.0])
def test_rows_without_and_with_only_eligible_tokens(fraction):
    nothing = np.array([BOS, EOS, PAD, PAD], dtype=np.uint8)
    input_ids, positions, labels = mask_row(nothing, (0, 0, 0), 3, fraction)
    assert np.array_equal(input_ids, nothing) and labels.tolist() == [-100] * 3 and positions.tolist() == [0] * 3
    full = np.full(20, 6, dtype=np.uint8)
    assert (mask_row(full, (0, 0, 0), 20, fraction)[2] == 6).sum() == min(20, round(22 * fraction))


def test_the_mask_changes_with_each_part_of_the_key():
    tokens, _ = make_row(7)
    masks = [mask_row(tokens, key, 300, 0.15)[1] for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 11, 1))]
    shared = [len(np.intersect1d(a, b)) for i, a in enumerate(masks) for b in masks[:i]]
    assert max(shared) < 90  # 45 expected for independent choices, standard deviation 6


def test_shares_and_choice_are_those_of_the_recipe():
    """400 masks of one row of a single residue: 80 % <mask>, 10 % spread over 27 tokens, the rest unchanged."""
    tokens = np.full(ROW_TOKENS, 6, dtype=np.uint8)
    slots, repeats = 307, 400
    chosen, replacements = np.zeros(ROW_TOKENS), np.zeros(27)
    for epoch in range(repeats):
        input_ids, positions, _ = mask_row(tokens, (0, epoch, 0), slots, 0.15)
        chosen[positions] += 1
        replacements += np.bincount(input_ids[positions], minlength=27)
        assert (np.delete(input_ids, positions) == 6).all()

    expected = np.full(27, 0.1 / 27)
    expected[MASK] += 0.8
    expected[6] += 0.1
    total = slots * repeats
    deviations = (replacements - total * expected) / np.sqrt(total * expected * (1 - expected))
    assert np.abs(deviations).max() < 5

    share = slots / ROW_TOKENS
    deviations = (chosen - repeats * share) / np.sqrt(repeats * share * (1 - share))
    assert np.abs(deviations).max() < 5.5
    assert 0.8 < (deviations**2).mean() < 1.2


def test_evaluation_masks_a_protein_equally_in_every_packing_and_protocol():
    tokens, lengths = make_row(8)
    windows = np.split(tokens, np.cumsum(lengths))[:-1]
    order = np.random.RandomState(0).permutation(len(windows))
    repacked = np.concatenate([windows[i] for i in order])
    results = {}
    for protocol in ("published", "mask_only"):
        per_packing = []
        for row, sizes in ((tokens, lengths), (repacked, lengths[order])):
            input_ids, positions, _ = mask_windows(row, sizes, 0.15, protocol)
            cuts = np.cumsum(sizes)[:-1]
            masked = np.zeros(len(row), dtype=bool)
            masked[positions] = True
            per_packing.append(list(zip(np.split(input_ids, cuts), np.split(masked, cuts))))
        first, second = per_packing
        for index, window in enumerate(order):
            assert all(np.array_equal(a, b) for a, b in zip(first[window], second[index]))
        results[protocol] = first
    for (_, masked), (input_ids, also_masked) in zip(results["published"], results["mask_only"]):
        assert np.array_equal(masked, also_masked)
        assert (input_ids[masked] == MASK).all()


def test_evaluation_masks_at_least_one_token_of_a_window_that_has_any():
    tokens = np.array([BOS, 9, EOS, BOS, EOS, 5, 7, PAD], dtype=np.uint8)
    _, positions, labels = mask_windows(tokens, np.array([3, 2, 2], dtype=np.uint16), 0.15, "mask_only")
    assert positions[0] == 1 and len(positions) == 2 and positions[1] in (5, 6)
    assert labels.tolist() == tokens[positions].tolist()
    empty = mask_windows(tokens, np.array([], dtype=np.uint16))
    assert np.array_equal(empty[0], tokens) and len(empty[1]) == len(empty[2]) == 0
