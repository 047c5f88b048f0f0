"""Budgets: what they refuse, and that they are exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightbox.errors import RequestError
from lightbox.pruning.budgets import Budget, largest_remainder


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "above 0"),
        (0.0, "above 0"),
        (-3, "above 0"),
        (float("nan"), "above 0"),
        (1.5, "at most 1.0"),
        (True, "share"),
    ],
)
def test_a_budget_that_no_image_can_meet_is_refused(value, words):
    with pytest.raises(RequestError, match=words) as error:
        Budget(value)
    assert f"{value!r}" in error.value.given


def test_one_is_a_token_and_one_point_zero_is_all():
    assert Budget(1).of(576) == 1
    assert Budget(1.0).of(576) == 576


def test_more_than_present_is_refused_with_both_numbers():
    with pytest.raises(RequestError, match=r"64 tokens, and an image has 16\..*at most 16"):
        Budget(64).of(16)


def test_a_share_is_rounded_as_it_is_written():
    assert [Budget(0.15).of(10), Budget(0.25).of(10), Budget(0.2).of(576), Budget(0.001).of(10)] == [2, 3, 115, 1]


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 30)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_parts_sum_exactly_and_stay_under_their_caps(parts, share):
    weights, caps = zip(*parts, strict=True)
    total = round(share * sum(caps))
    divided = largest_remainder(weights, total, caps)
    assert sum(divided) == total
    assert all(0 <= own <= cap for own, cap in zip(divided, caps, strict=True))


def test_parts_follow_weights_by_largest_remainder():
    # quotas 4.5, 3.1, 2.4: the halves come first
    assert largest_remainder([45, 31, 24], 10, [10, 10, 10]) == [5, 3, 2]
    assert largest_remainder([0, 0], 3, [5, 5]) == [2, 1]
