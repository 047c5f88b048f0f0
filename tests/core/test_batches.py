import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightbox.errors import RequestError, WorkError
from lightbox.train.batches import MEGA_BATCHES, BatchSource


def source(n_items=23, batch_size=4, seed=0, **options):
    return BatchSource(n_items, lambda indices: indices, batch_size=batch_size, seed=seed, **options)


def take(batches, count):
    return [batches.next_indices() for _ in range(count)]


@given(
    n_items=st.integers(1, 300),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    is_bucketed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_epoch_gives_every_item_once(n_items, batch_size, seed, is_bucketed):
    lengths = [7 * i % 13 for i in range(n_items)] if is_bucketed else None
    batches = source(n_items, batch_size, seed, lengths=lengths)
    for epoch in range(3):
        order = batches.order(epoch)
        assert sorted(index for batch in order for index in batch) == list(range(n_items))
        assert sorted(len(batch) for batch in order)[1:] == [batch_size] * (len(order) - 1)
        assert take(batches, len(order)) == order
        assert batches.epoch == epoch


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    random.seed(1)
    np.random.seed(1)
    first = take(source(seed=5), 20)
    random.seed(2)
    np.random.seed(2)
    assert take(source(seed=5), 20) == first
    assert take(source(seed=6), 20) != first
    assert source(seed=5).order(0) != source(seed=5).order(1)


def test_seed_zero_shuffles_too():
    assert [index for batch in source(seed=0).order(0) for index in batch] != list(range(23))


def test_bucketing_saves_padding_and_shuffles_batches():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 64, size=16 * MEGA_BATCHES * 2).tolist()
    options = {"n_items": len(lengths), "batch_size": 16}

    def padded(batches):
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches.order(0))

    bucketed = source(**options, lengths=lengths)
    assert padded(source(**options)) > 1.5 * sum(lengths)
    assert padded(bucketed) < 1.1 * sum(lengths)
    longest = [max(lengths[i] for i in batch) for batch in bucketed.order(0)]
    assert longest != sorted(longest)
    halves = np.mean(longest[: len(longest) // 2]), np.mean(longest[len(longest) // 2 :])
    assert abs(halves[0] - halves[1]) < 10  # no drift from short to long


@pytest.mark.parametrize("lengths", [None, [i % 7 for i in range(23)]])
@pytest.mark.parametrize("taken", [0, 1, 5, 6, 7, 11, 12, 20])
def test_a_restored_source_continues_with_the_very_next_batch(taken, lengths):
    straight = take(source(lengths=lengths), 30)
    first = source(lengths=lengths)
    take(first, taken)
    state = json.loads(json.dumps(first.state()))
    second = source(lengths=lengths)
    second.restore(state)
    assert take(second, 30 - taken) == straight[taken:]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"n_items": 24},
        {"batch_size": 5},
        {"ids": [f"other-{i}" for i in range(23)]},
        {"lengths": list(range(23))},
    ],
)
def test_restoring_under_another_order_is_refused(changed):
    state = source().state()
    other = source(**changed)
    with pytest.raises(WorkError, match="order of examples has hash"):
        other.restore(state)
    assert (other.epoch, other.position) == (0, 0)


def test_names_are_given_or_numbers():
    assert source().names([3, 1]) == ["3", "1"]
    assert source(ids=[f"case-{i}" for i in range(23)]).names([3, 1]) == ["case-3", "case-1"]


@pytest.mark.parametrize("options", [{"lengths": [1, 2]}, {"ids": ["a"]}])
def test_lengths_and_ids_must_cover_the_items(options):
    with pytest.raises(RequestError, match=f"{next(iter(options))} for 23 items"):
        source(**options)


@pytest.mark.parametrize(("n_items", "batch_size"), [(0, 4), (4, 0)])
def test_no_items_or_an_empty_batch_is_refused(n_items, batch_size):
    with pytest.raises(RequestError, match=f"{n_items} items in batches of {batch_size}"):
        source(n_items, batch_size)


def test_what_is_upcoming_is_what_will_be_taken_and_is_not_moved_by_taking():
    batches = source()
    take(batches, 4)
    upcoming = batches.upcoming()
    assert next(upcoming) == batches.order(0)[4]
    assert take(batches, 15) == [batches.order(0)[4], *itertools.islice(upcoming, 14)]


@pytest.mark.parametrize(
    ("lengths", "n", "longest"),
    [
        ([3, 9, 5, 9], 1, [1]),
        ([3, 9, 5, 9], 3, [1, 3, 2]),
        ([3, 9, 5, 9], 8, [1, 3, 2, 0]),
        ([[9, 1], [6, 6], [1, 8], [5, 6]], 1, [1]),  # one item: the longest in all
        ([[9, 1], [6, 6], [1, 8], [5, 6]], 3, [0, 2, 1]),  # several, padded to the longest of each kind
        ([[9, 9], [6, 6]], 2, [0, 1]),
    ],
)
def test_the_longest_items_are_those_that_no_batch_exceeds(lengths, n, longest):
    batches = source(len(lengths))
    batches.row_lengths = lambda: lengths
    assert batches.longest(n) == longest
