"""What a MedPLIB learns from: words of its answers, and the masks that it draws.

Differs from the official loss in that a batch without supervised words, or without masks, gives 0 and not NaN; the
means are those of the paper: over the words of a batch, and over its masks, each a mean over its pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.losses.language import row_cross_entropy
from lightbox.losses.masks import mask_loss


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, >= 0; the paper's of stages 3 and 4 are in `STAGE_WEIGHTS`."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5


STAGE_WEIGHTS = {
    "align": LossWeights(),
    "vl": LossWeights(),
    "grounding": LossWeights(1.0, 1.0, 5.0),
    "mixture": LossWeights(1.0, 2.0, 0.5),
    "joint": LossWeights(1.0, 2.0, 0.5),
}
"""Of the released scripts, and of joint training those of stage 4; stages 1 and 2 have no masks. Stage 3's focal
term, of weight 1, is left out."""


def pixel_loss(
    logits: Float[Tensor, "n v"],
    targets: Int[Tensor, " n"],
    mask_logits: Sequence[Float[Tensor, "_ _"]],
    masks: Sequence[Bool[Tensor, "_ _"]],
    *,
    items: int,
    weights: LossWeights,
) -> tuple[Float[Tensor, ""], int, dict[str, Tensor]]:
    """Mean cross-entropy of words, and mean cross-entropy and Dice loss of masks, as a sum over items.

    Args:
        logits, targets: of the supervised words of a batch.
        mask_logits, masks: of its `<SEG>`, each at the size of its picture.
        items: of the batch, > 0; its losses count so often in a step of several batches.
        weights: of the terms.

    Returns:
        The sum, with gradient; the number of items; detached means of the terms, masks' only where there are any.
    """
    text = row_cross_entropy(logits, targets) / max(1, len(targets))
    total, parts = weights.text * text, {"text": text.detach()}
    if len(mask_logits) or len(masks):
        drawn, count, terms = mask_loss(mask_logits, masks, bce=weights.bce, dice=weights.dice)
        total = total + drawn / count
        parts |= {name: term / count for name, term in terms.items()}
    return total * items, items, parts
