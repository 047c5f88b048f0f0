"""Is the mask right? Dice and IoU with both conventions for empty masks, false masks, thresholds. No torch.

Two empty masks agree, and a share of nothing is undefined: some count it as 1, some (LISA's and MedPLIB's evaluation
among them) as 0, some leave such items out. All three stand beside each other. Means too are two: over items, and over
modalities of the items' means, in which a small modality counts as much as a large one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

THRESHOLD = 0.5
CANDIDATES = tuple(step / 20 for step in range(1, 20))
"""Thresholds that `best_threshold` looks at."""

Scores = dict[str, float | None]
"""Scores of one item by name; None where one is undefined, and no mean counts it."""


def drawn_at(logits: Float[np.ndarray, "h w"], threshold: float = THRESHOLD) -> Bool[np.ndarray, "h w"]:
    """Pixels whose probability, the sigmoid of the logit, is above a threshold in (0, 1)."""
    return logits > np.log(threshold / (1 - threshold))


def score_mask(drawn: Bool[np.ndarray, "_ _"] | None, true: Bool[np.ndarray, "_ _"]) -> Scores:
    """Score the mask of one item.

    Args:
        drawn: None where the model emitted no mask, which is then empty.
        true: empty where what was asked for is absent.

    Returns:
        dice, iou: in [0, 1], 1 where both masks are empty.
        dice_0, iou_0: the same, 0 where both are empty.
        dice_present, iou_present: None where the true mask is empty.
        emitted: 1 where the model emitted a mask, 0 where not.
        false_mask: where the true mask is empty, 1 for a pixel or more drawn and 0 for none; None elsewhere.

    Raises:
        ValueError: masks of different sizes.

    Example:
        >>> score_mask(np.array([[True, True, False]]), np.array([[False, True, True]]))["dice"]
        0.5
    """
    if drawn is not None and drawn.shape != true.shape:
        raise ValueError(f"The mask drawn is {drawn.shape} and the true one {true.shape}")
    n_true, n_drawn = int(true.sum()), 0 if drawn is None else int(drawn.sum())
    shared = 0 if drawn is None else int((drawn & true).sum())
    dice, iou = (top / whole if whole else None for top, whole in _ratios(shared, n_drawn, n_true))
    return {
        "dice": 1.0 if dice is None else dice,
        "iou": 1.0 if iou is None else iou,
        "dice_0": dice or 0.0,
        "iou_0": iou or 0.0,
        "dice_present": dice if n_true else None,
        "iou_present": iou if n_true else None,
        "emitted": float(drawn is not None),
        "false_mask": None if n_true else float(n_drawn > 0),
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean over items, without those where the score is undefined; None where it is so in all."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def modality_means(values: Sequence[float | None], modalities: Sequence[str]) -> dict[str, float | None]:
    """Mean over the items of each modality; `mean_of` its values is the mean over modalities.

    Example:
        >>> means = modality_means([1.0, 0.0, 0.5], ["ct", "ct", "pet"])
        >>> means, mean_of(list(means.values()))
        ({'ct': 0.5, 'pet': 0.5}, 0.5)
    """
    groups: dict[str, list[float | None]] = {}
    for value, modality in zip(values, modalities, strict=True):
        groups.setdefault(modality, []).append(value)
    return {modality: mean_of(own) for modality, own in groups.items()}


def summary(scores: Sequence[Mapping[str, float | None]], modalities: Sequence[str]) -> dict[str, float | None]:
    """Both means of every score: under its name over items, under `NAME/modalities` over modalities."""
    means: dict[str, float | None] = {}
    for name in scores[0] if scores else ():
        values = [own[name] for own in scores]
        means[name] = mean_of(values)
        means[f"{name}/modalities"] = mean_of(list(modality_means(values, modalities).values()))
    return means


def best_threshold(
    logits: Sequence[Float[np.ndarray, "_ _"]],
    true: Sequence[Bool[np.ndarray, "_ _"]],
    *,
    candidates: Sequence[float] = CANDIDATES,
) -> float:
    """The threshold with the highest mean Dice over validation items, the one nearest to 0.5 among equals.

    Args:
        logits: of the masks of validation items, never of those that are scored with it.
        true: their true masks; two empty masks count as 1, so that masks drawn for nothing cost something.
        candidates: in (0, 1).

    Raises:
        ValueError: no item, or masks of different sizes.
    """
    if not logits:
        raise ValueError("A threshold is chosen on one item or more")

    def dice(threshold: float) -> float:
        return sum(score_mask(drawn_at(z, threshold), t)["dice"] or 0 for z, t in zip(logits, true, strict=True))

    return max(candidates, key=lambda threshold: (dice(threshold), -abs(threshold - THRESHOLD)))


def _ratios(shared: int, n_drawn: int, n_true: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Dice and IoU, each as a count and what it is a share of."""
    return (2 * shared, n_drawn + n_true), (shared, n_drawn + n_true - shared)
