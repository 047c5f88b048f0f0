"""The interval of a mean over the items of one run. No torch.

Items that show the same image are not independent, so whole images are resampled where it is known which item shows
which. One run has one seed: these intervals say nothing about another seed, see `intervals` for those.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
N_RESAMPLES = 2000
FEW_GROUPS = 20
"""Below this many images or items, a percentile interval is known to be too narrow."""
_CHUNK = 1_000_000  # drawn values held at once, about 8 MB an array


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over items, its 95 % interval, and how many groups (images, or items) that was made from.

    `interval` is None where there is none: one group, or values that are all alike and no shares.
    """

    mean: float
    interval: tuple[float, float] | None
    n_items: int
    n_groups: int


def mean_estimate(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, *, is_share: bool = False
) -> Estimate:
    """Mean of the values of items, with the percentile interval of a bootstrap that resamples groups.

    A mean of a resample is that of all items in the groups drawn, so a group counts by its items. The same input gives
    the same interval.

    Args:
        values: one number an item, at least one; scores, or differences of paired scores.
        groups: of each item, for example the image it shows; None makes each item a group of its own.
        is_share: True for values of 0 and 1 whose mean is a share. Where all of them are alike no resample differs, and
            the interval is the exact binomial one of as many draws as there are groups.

    Returns:
        Mean and interval in the unit of the values; other values that are all alike have no interval.

    Raises:
        ValueError: where there are no values.

    Example:
        >>> mean_estimate([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]).interval
        (0.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a mean needs at least one value")
    labels = list(groups) if groups is not None else list(range(values.size))
    place = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    rows = np.array([place[label] for label in labels])
    sums = np.bincount(rows, weights=values, minlength=len(place))
    sizes = np.bincount(rows, minlength=len(place)).astype(np.float64)
    return Estimate(float(values.mean()), _interval(values, sums, sizes, is_share=is_share), values.size, len(place))


def _interval(values: np.ndarray, sums: np.ndarray, sizes: np.ndarray, *, is_share: bool) -> tuple[float, float] | None:
    count = sums.size
    if np.ptp(values) == 0:
        if not is_share:
            return None
        ends = stats.binomtest(int(values[0]) * count, count).proportion_ci(LEVEL, method="exact")
    elif count == 1:
        return None
    else:
        ends = stats.bootstrap(
            (sums, sizes),
            _ratio,
            paired=True,
            vectorized=True,
            method="percentile",
            confidence_level=LEVEL,
            n_resamples=N_RESAMPLES,
            batch=max(1, _CHUNK // count),
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(ends.low), float(ends.high)


def _ratio(sums: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)
