import numpy as np
import pytest
from scipy import stats

from lightbox.eval.intervals import half_width, hierarchical_bootstrap, t_interval


def test_t_interval_equals_the_textbook_one():
    values = np.array([0.031, 0.012, 0.055, 0.020, 0.044])
    expected = stats.t.interval(0.95, df=4, loc=values.mean(), scale=stats.sem(values))
    assert np.allclose(t_interval(values), expected, rtol=1e-12)


def test_t_interval_treats_leading_axes_as_separate_experiments():
    values = np.random.default_rng(0).normal(size=(3, 4, 6))
    low, high = t_interval(values, level=0.9)
    assert low.shape == (3, 4)
    assert np.allclose((low[2, 1], high[2, 1]), t_interval(values[2, 1], level=0.9))


def test_t_interval_at_90_percent_is_inside_the_one_at_95():
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    (low90, high90), (low95, high95) = t_interval(values, level=0.9), t_interval(values)
    assert low95 < low90 < high90 < high95


def test_t_interval_refuses_one_seed():
    with pytest.raises(ValueError, match="at least 2 values"):
        t_interval([1.0])


def test_t_interval_covers_the_mean_in_95_percent_of_5_seed_experiments():
    values = np.random.default_rng(1).normal(0.3, 2.0, size=(20_000, 5))
    low, high = t_interval(values)
    assert abs(((low <= 0.3) & (high >= 0.3)).mean() - 0.95) < 0.005  # 3 standard errors


def test_half_width_of_five_values_is_2_78_standard_errors():
    assert half_width(1.0, 5) == pytest.approx(2.7764 / np.sqrt(5), rel=1e-4)


def test_bootstrap_gives_the_same_interval_again_and_another_with_another_seed():
    items = [np.random.default_rng(s).choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.7, 0.2]) for s in range(5)]
    assert hierarchical_bootstrap(items) == hierarchical_bootstrap(items)
    assert hierarchical_bootstrap(items) != hierarchical_bootstrap(items, seed=1)


@pytest.mark.parametrize("digits", [0, 3])
def test_bootstrap_spread_is_that_of_seeds_and_items(digits):
    """Few distinct differences are drawn as counts, many as indices; both have the variance that theory gives."""
    rng = np.random.default_rng(2)
    items = [np.round(rng.normal(mean, 3.0, 400), digits) for mean in (0.0, 1.0, 2.0, 3.0, 4.0)]
    means = np.array([values.mean() for values in items])
    within = np.mean([values.var() / values.size for values in items])
    expected = np.sqrt((means.var() + within) / 5)
    low, high = hierarchical_bootstrap(items, n_resamples=20_000)
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.05)
    assert low < means.mean() < high


def test_bootstrap_of_seeds_that_agree_still_shows_the_sampling_of_items():
    one = np.r_[np.ones(100), np.zeros(100)]
    low, high = hierarchical_bootstrap([one] * 5, n_resamples=20_000)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.sqrt(0.25 / 200 / 5), rel=0.05)
