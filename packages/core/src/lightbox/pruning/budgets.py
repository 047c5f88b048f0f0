"""How many tokens may stay: a share or a count an image, divided exactly. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lightbox.errors import RequestError


@dataclass(frozen=True)
class Budget:
    """How many tokens of each image stay.

    A budget is one of an image and not of a batch, so that an image keeps the same tokens whatever stands beside it.

    Args:
        value: a float is a share in (0, 1], so 1.0 is all; an int is a count of at least 1, so 1 is one token.

    Raises:
        RequestError: zero, negative, a share above 1, or what is no number.
    """

    value: float | int

    def __post_init__(self) -> None:
        request = f"budget is {self.value!r}"
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise RequestError(
                request, "It is a share of tokens or a number of tokens", "Set budget to 0.25, or to 64 for a count"
            )
        if not self.value > 0:  # NaN is not above 0 either
            raise RequestError(
                request, "An image without a token is no image for the model", "Set budget above 0, for example 0.25"
            )
        if self.is_share and self.value > 1:
            raise RequestError(
                request,
                "A share is at most 1.0, which keeps all tokens",
                f"Set budget to a share in (0, 1], or to a whole number of tokens an image such as {int(self.value)}",
            )

    @property
    def is_share(self) -> bool:
        """Whether it is a share of tokens and not a count."""
        return isinstance(self.value, float)

    def of(self, present: int) -> int:
        """Tokens that an image of `present` tokens keeps: at least 1; a share is rounded to the nearest, half up.

        Raises:
            RequestError: a count above `present`.

        Example:
            >>> Budget(0.25).of(576), Budget(64).of(576), Budget(0.01).of(9)
            (144, 64, 1)
        """
        if not self.is_share:
            if self.value > present:
                raise RequestError(
                    f"budget is {self.value} tokens, and an image has {present}",
                    "No more can be kept than there are",
                    f"Set budget to at most {present}, or to a share such as 0.25",
                )
            return int(self.value)
        # as written, not as stored: 0.15 of 10 is 1.5, and in binary a little less
        return max(1, int(Fraction(str(self.value)) * present + Fraction(1, 2)))


def largest_remainder(weights: Sequence[float], total: int, caps: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to weights, exactly, with a cap on each part.

    Whole parts first, then one each to the largest remainders (Hamilton's method); what a cap cuts off is divided again
    among the others. Ties go to the earlier part. For weights that the host knows; those on a device have
    `allocate_budget` of the kernels.

    Args:
        weights: not negative; all zero counts as all equal.
        total: at most the sum of `caps`.
        caps: most that each part can take.

    Example:
        >>> largest_remainder([1, 1, 1], 8, [9, 9, 9])
        [3, 3, 2]
        >>> largest_remainder([9, 1], 8, [4, 9])
        [4, 4]
    """
    parts = [0] * len(caps)
    assert 0 <= total <= sum(caps), (total, caps)
    while (left := total - sum(parts)) > 0:
        open_parts = [i for i, cap in enumerate(caps) if parts[i] < cap]
        shares = [Fraction(weights[i]) for i in open_parts]
        whole = sum(shares)
        if whole == 0:
            shares, whole = [Fraction(1)] * len(open_parts), Fraction(len(open_parts))
        quotas = [share * left / whole for share in shares]
        floors = [int(quota) for quota in quotas]
        by_remainder = sorted(range(len(quotas)), key=lambda i: (floors[i] - quotas[i], i))
        for i in by_remainder[: left - sum(floors)]:
            floors[i] += 1
        for i, own in zip(open_parts, floors, strict=True):
            parts[i] = min(parts[i] + own, caps[i])
    return parts
