"""What a mixture of experts costs whose experts are padded to one capacity, as in DeepSpeed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PaddedRows:
    """Rows that enter experts of one capacity, and choices without a place, whose expert's output is lost."""

    entering: int
    dropped: int


def padded_rows(counts: Sequence[int], *, factor: float) -> PaddedRows:
    """What experts cost that are padded to one capacity, ceil(factor * tokens / experts) rows each (DeepSpeed 0.13.1).

    Args:
        counts: tokens that prefer each expert, padding of the batch included, as the official code routes it.
        factor: 1.5 in its training, 2.0 in its evaluation.

    Example:
        >>> padded_rows([700, 0], factor=1.5)
        PaddedRows(entering=1050, dropped=175)
    """
    capacity = math.ceil(factor * sum(counts) / len(counts))
    return PaddedRows(capacity * len(counts), sum(max(0, n - capacity) for n in counts))
