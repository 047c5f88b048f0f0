"""What an episode is worth: named terms, and four ways to weigh them. No torch.

ViTAR's code (its rollout loop) pays 0.2 for each turn that could be carried out, a box drawn or an answer given, and 1
for an answer that equals the true one. A box is paid for wherever it lies, and in the last turn too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightbox.errors import RequestError
from lightbox.eval.boxes import score_boxes
from lightbox.paper.reward_terms import Reward, weighed
from lightbox.records import Box

VARIANTS: dict[str, dict[str, float]] = {
    "A": {"act": 0.2, "format": 0.2, "accuracy": 1.0},
    "B": {"accuracy": 0.8, "broken": -0.2, "tool": 1.2},
    "C": {"act": 0.2, "format": 0.2, "accuracy": 1.0, "iou": 0.5},
    "D": {"accuracy": 1.0},
}
"""A: ViTAR's own. B: DeepEyes', whose bonus for a tool depends on the answer. C: A with a term for the box. D: the
answer only. Claim V5 compares them."""


@dataclass(frozen=True)
class Result:
    """What of an episode is rewarded.

    Args:
        acts: turns whose actions were carried out.
        boxes: of the last such turn, as the policy wrote them.
        has_failed: any turn could not be read or carried out; an early answer is no such failure here.
        answer: None where the episode ended without one.
        truth: the true answer.
        true_boxes: of the finding asked about; none where it is absent.
    """

    acts: int
    boxes: tuple[Box, ...]
    has_failed: bool
    answer: str | None
    truth: str
    true_boxes: tuple[Box, ...] = ()


def terms_of(result: Result) -> dict[str, float]:
    """Every term without its weight.

    Returns:
        act: number of turns whose actions were carried out, ViTAR's unconditional bonus. format: 1 for an answer in the
        expected form. accuracy: 1 for the true answer. tool: 1 for the true answer after an act (DeepEyes). iou: of the
        boxes that the policy chose last with the true ones, paired, in [0, 1]. broken: 1 where a turn failed.
    """
    is_right = result.answer is not None and normal(result.answer) == normal(result.truth)
    iou = 0.0
    if result.boxes and result.true_boxes:
        is_real = all(map(math.isfinite, (value for box in (*result.boxes, *result.true_boxes) for value in box)))
        iou = score_boxes(result.boxes, result.true_boxes).paired_iou or 0.0 if is_real else math.nan
    return {
        "act": float(result.acts),
        "format": float(result.answer is not None),
        "accuracy": float(is_right),
        "tool": float(is_right and result.acts > 0),
        "iou": iou,
        "broken": float(result.has_failed),
    }


def reward(terms: Mapping[str, float], variant: str | Mapping[str, float]) -> Reward:
    """Weigh terms, see `reward_terms.weighed`, by weights or as a key of `VARIANTS` says.

    Raises:
        RequestError: an unknown variant, or a weight of a term that is not there.
    """
    weights = VARIANTS.get(variant) if isinstance(variant, str) else variant
    if weights is None:
        raise RequestError(f"reward is {variant!r}", f"Variants are {', '.join(VARIANTS)}", "Choose one of them")
    return weighed(terms, weights)


def normal(answer: str) -> str:
    """An answer as it is compared: without spaces and underscores, in lower case (ViTAR's code).

    Example:
        >>> normal("Left_lower Zone")
        'leftlowerzone'
    """
    return answer.replace(" ", "").replace("_", "").lower()
