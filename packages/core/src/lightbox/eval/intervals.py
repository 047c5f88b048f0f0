"""Intervals: the t interval over seeds, which decides; a hierarchical bootstrap beside it.

The seed is the unit of replication: each seed redraws cases and initialisation, so d_s, the mean paired difference on
the items of seed s, is one draw, and items of one seed are not further independent draws of the effect. No torch.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

_FEW_VALUES = 64  # up to this many distinct differences, a resample of items is one multinomial draw
_CHUNK = 4_000_000  # drawn item indices held at once, about 32 MB


def t_interval(values: np.ndarray | Sequence[float], *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Two-sided t interval of the mean: mean +- t((1 + level) / 2, S - 1) sd / sqrt(S).

    Args:
        values: one number a seed on the last axis (S >= 2); leading axes are separate experiments.
        level: coverage, in (0, 1); 0.90 gives the interval of two one-sided tests at 5 %.

    Returns:
        Lower and upper ends, shaped like `values` without its last axis.

    Raises:
        ValueError: where S < 2, which has no spread.

    Example:
        >>> low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(float(low), 3), round(float(high), 3)
        (-0.484, 4.484)
    """
    values = np.asarray(values, dtype=np.float64)
    count = values.shape[-1] if values.ndim else 0
    if count < 2:
        raise ValueError(f"A t interval needs at least 2 values on the last axis, got shape {values.shape}")
    mean = values.mean(axis=-1)
    # ddof 1: the mean is estimated from the same few seeds
    half = half_width(values.std(axis=-1, ddof=1), count, level=level)
    return np.asarray(mean - half), np.asarray(mean + half)


def half_width(sd: np.ndarray | float, count: int, *, level: float = 0.95) -> np.ndarray | float:
    """Half the width of the t interval of `count` >= 2 values with standard deviation `sd`, in the unit of `sd`."""
    return t_quantile((1 + level) / 2, count - 1) * sd / np.sqrt(count)


def t_quantile(prob: float, degrees: float) -> float:
    """Quantile of Student's t at `prob` in (0, 1) with `degrees` > 0 degrees of freedom."""
    return float(stdtrit(degrees, prob))


def hierarchical_bootstrap(
    differences: Sequence[np.ndarray], *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over seeds, resampling seeds and, within each drawn seed, its items.

    Printed beside the t interval and decides nothing: with few seeds it is too narrow, because S drawn seeds repeat.

    Args:
        differences: per seed, the paired differences of its items, one axis, not empty.
        level: coverage aimed at, in (0, 1).
        n_resamples: bootstrap samples, >= 1; time grows in proportion.
        seed: of the resampling; the same input gives the same interval.
    """
    rng = np.random.default_rng(seed)
    count = len(differences)
    drawn = rng.integers(count, size=(n_resamples, count))
    means = np.empty((n_resamples, count))
    for index, items in enumerate(differences):
        is_drawn = drawn == index
        means[is_drawn] = _resampled_means(np.asarray(items, dtype=np.float64), int(is_drawn.sum()), rng)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(items: np.ndarray, n_means: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `n_means` resamples of `items`, each as large as `items` and drawn with replacement."""
    values, counts = np.unique(items, return_counts=True)
    if values.size <= _FEW_VALUES:  # binary scores have three differences: the counts of a resample are multinomial
        return rng.multinomial(items.size, counts / items.size, size=n_means) @ values / items.size
    rows = max(1, _CHUNK // items.size)
    sizes = [min(rows, n_means - start) for start in range(0, n_means, rows)]
    return np.concatenate(
        [items[rng.integers(items.size, size=(size, items.size))].mean(axis=1) for size in sizes] or [np.empty(0)]
    )
