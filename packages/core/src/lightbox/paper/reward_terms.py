"""What an episode earns: named terms, weighed and added up. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightbox.errors import RequestError


@dataclass(frozen=True)
class Reward:
    """A sum of weighted terms; `not_finite` names those that were set to 0 because they were no finite number."""

    total: float
    terms: dict[str, float]
    not_finite: tuple[str, ...] = ()


def weighed(terms: Mapping[str, float], weights: Mapping[str, float]) -> Reward:
    """Weigh terms.

    Args:
        terms: by name.
        weights: by name of a term; a term without weight is left out, also where it is not finite.

    Raises:
        RequestError: a weight of a term that is not there.

    Example:
        >>> weighed({"accuracy": 1.0, "iou": 0.5, "act": 2.0}, {"accuracy": 1.0, "iou": 0.5})
        Reward(total=1.25, terms={'accuracy': 1.0, 'iou': 0.25}, not_finite=())
    """
    missing = sorted(weights.keys() - terms.keys())
    if missing:
        raise RequestError(
            f"Weights of the terms {', '.join(missing)}", f"Terms are {', '.join(terms)}", "Weigh terms that are there"
        )
    weighted = {name: weight * terms[name] for name, weight in weights.items()}
    broken = tuple(name for name, value in weighted.items() if not math.isfinite(value))
    weighted |= dict.fromkeys(broken, 0.0)
    return Reward(math.fsum(weighted.values()), weighted, broken)
