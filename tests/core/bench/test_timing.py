"""Times as medians with percentiles, calls in turns, ratios by round."""

import time

import pytest
import torch

from lightbox.bench import timing
from lightbox.errors import RequestError


def test_percentiles_are_those_of_the_sorted_samples():
    times = timing.times_of([0.005, 0.001, 0.003, 0.002, 0.004, 0.006])
    assert (times.low, times.median, times.high, times.count) == pytest.approx((0.002, 0.0035, 0.005, 6))
    assert str(times) == "3.5 ms (p20 2, p80 5)"
    # between two samples, as far as the percentile is between their places
    between = timing.times_of([1.0, 2.0, 4.0])
    assert (between.low, between.high) == pytest.approx((1.4, 3.2))
    assert timing.times_of([7.0]) == timing.Times(7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize("samples", [[], [0.0], [1.0, float("nan")], [-1.0], [float("inf")]])
def test_no_time_at_all_is_refused(samples):
    with pytest.raises(RequestError, match="so nothing was measured"):
        timing.times_of(samples)


def test_calls_take_turns_and_who_begins_alternates():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.003)) for name in ("first", "second")}
    samples = timing.in_turns(calls, rounds=3, round_s=1e-9)
    runs = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    # one of each to warm up, then first and second, second and first, first and second
    assert runs == ["first", "second", "first", "second", "first", "second"]
    assert {name: len(own) for name, own in samples.items()} == {"first": 3, "second": 3}
    assert all(0.003 <= taken < 1 for rounds in samples.values() for own in rounds for taken in own)


def test_a_call_that_takes_longer_is_seen_to():
    samples = timing.in_turns(
        {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.02)}, rounds=2, round_s=1e-9
    )
    ratio, each = timing.ratio_of(samples["long"], samples["short"])
    assert len(each) == 2
    assert ratio > 3


def test_a_ratio_is_the_median_over_rounds_and_not_of_all_samples():
    """A machine that slows down from round to round slows both sides."""
    ours, peer = [[1.0], [10.0], [100.0]], [[2.0, 2.0, 2.0], [20.0], [300.0]]
    assert timing.ratio_of(peer, ours) == (2.0, [2.0, 2.0, 3.0])


def test_short_calls_are_timed_many_at_a_time():
    count = 0

    def call():
        nonlocal count
        count += 1

    times = timing.pooled(timing.in_turns({"call": call}, rounds=1, round_s=0.01)["call"])
    assert times.median < 1e-4
    assert count > 100 * times.count


def test_floors_are_work_that_is_done():
    copy = timing.copy_of(1001, "cpu")
    assert copy().numel() == 500
    product, flop = timing.product_on("cpu", torch.float32, side=8)
    assert flop == 2 * 8**3
    assert product().tolist() == [[8.0] * 8] * 8


def test_threads_are_as_before():
    threads = torch.get_num_threads()
    with timing.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
