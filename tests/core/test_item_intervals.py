"""Intervals over the items of one run, against hand-made cases and the closed form."""

import numpy as np
import pytest
from scipy import stats

from lightbox.eval.item_intervals import mean_estimate


def test_two_images_give_the_three_means_that_two_draws_can_have():
    found = mean_estimate([1.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"])
    assert (found.mean, found.n_items, found.n_groups) == (0.75, 4, 2)
    assert found.interval == (0.5, 1.0)  # bb, ab, aa; the outer ones a quarter of the time each


def test_items_of_one_image_widen_the_interval():
    values = np.repeat(np.arange(100) % 2, 4)
    by_item = mean_estimate(values).interval
    by_image = mean_estimate(values, np.repeat(np.arange(100), 4).tolist()).interval
    assert by_image[1] - by_image[0] == pytest.approx(2 * (by_item[1] - by_item[0]), rel=0.15)  # root of 4


def test_independent_items_give_the_interval_of_the_normal_approximation():
    values = np.arange(400) % 4 == 0
    found = mean_estimate(values)
    half = stats.norm.ppf(0.975) * np.sqrt(0.25 * 0.75 / 400)
    assert found.interval == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)
    assert mean_estimate(values) == found


def test_larger_images_count_by_their_items():
    assert mean_estimate([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean == 0.75


def test_shares_that_are_all_alike_have_the_exact_interval_of_their_images():
    assert mean_estimate([0.0] * 20, [0, 1] * 10, is_share=True).interval == pytest.approx((0, 1 - 0.025**0.5))
    low, high = mean_estimate([1.0] * 10, is_share=True).interval
    assert (low, high) == pytest.approx((0.025**0.1, 1.0))


def test_what_cannot_be_resampled_has_no_interval():
    assert mean_estimate([0.0, 0.0]).interval is None  # differences: nothing changed, and nobody knows how surely
    assert mean_estimate([1.0, 0.0], ["a", "a"]).interval is None
    with pytest.raises(ValueError, match="at least one value"):
        mean_estimate([])
