"""Numbers as people read them: signed effects, intervals, durations, with as many digits as the minimum effect asks."""

import math
from collections.abc import Sequence

NONE = "–"
MINUS = "−"


def decimals(min_effect: float | None, bound: float | None = None) -> int:
    """Digits after the point: one more than the minimum effect's first digit needs, at most 4; 3 where there is none.

    For an exact claim at least one more than its bound needs, which may be as small as rounding.

    Example:
        >>> decimals(2.0), decimals(0.02), decimals(None), decimals(0.02, 1e-6)
        (1, 3, 3, 7)
    """
    own = min(4, max(0, _needed(min_effect))) if min_effect else 3
    return max(own, _needed(bound)) if bound else own


def _needed(least: float) -> int:
    return 1 - math.floor(math.log10(abs(least)))


def signed(value: float | None, digits: int) -> str:
    """An effect with its sign; a dash where there is none.

    Example:
        >>> signed(-1.26, 1), signed(0.0, 1)
        ('−1.3', '0.0')
    """
    if value is None:
        return NONE
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def interval(ends: Sequence[float] | None, digits: int, percent: int = 95) -> str:
    """An interval in brackets, with its level where that is not 95 %; "" where there is none."""
    if ends is None:
        return ""
    low, high = (f"{end:.{digits}f}".replace("-", MINUS) for end in ends)
    return f"[{low}, {high}]" + f" at {percent} %" * (percent != 95)


def interval_words(ends: Sequence[float] | None, digits: int, percent: int = 95) -> str:
    """An interval for a reader who hears the page."""
    if ends is None:
        return "no interval"
    low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{percent} % interval {low} to {high}"


def number(value: float | None) -> str:
    """A plain number with three significant digits."""
    return NONE if value is None else f"{value:.3g}".replace("-", MINUS)


def level(value: float | None) -> str:
    """A mean score: one decimal from 10 up, three significant digits below.

    Example:
        >>> level(65.04), level(0.6504)
        ('65.0', '0.65')
    """
    return f"{value:.1f}" if value is not None and abs(value) >= 10 else number(value)


def duration(seconds: float | None) -> str:
    """Seconds as "42 s", "6.9 min" or "1.5 h"; a dash where unknown.

    Example:
        >>> duration(412.0)
        '6.9 min'
    """
    if seconds is None:
        return NONE
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f} %"
