"""What the masks of one answer are worth: at three thresholds, on two ways back from the grid. No torch."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from lightbox.eval.masks import THRESHOLD, Scores, best_threshold, drawn_at, score_mask
from lightbox.paper.image_frames import official_reading

PAPER_THRESHOLD = 0.1
"""At which MedPLIB's official code cuts masks, in training, evaluation and demo."""
SURE = 9.0
"""Logit of a pixel that is drawn without a model, and below 0 of one that is not: on either side of both thresholds."""
DISTANCES = ("hd95", "assd")
Outlines = Callable[[np.ndarray | None, np.ndarray], Scores]
"""Such as `lightbox.eval.mask_boundaries.score_boundaries`, which needs torch."""
SHOWN = ("dice", "dice_present", "iou_present", "false_mask")


def score_drawn(
    logits: Sequence[Float[np.ndarray, "_ _"]],
    true: Bool[np.ndarray, "_ _"],
    threshold: float | None = None,
    outlines: Outlines | None = None,
) -> Scores:
    """Score the masks that an answer speaks of as one: a pixel is drawn that is in any of them.

    Args:
        logits: of each mask, at the pixels of the image; none where the answer speaks of none.
        true: empty where what was asked for is absent.
        threshold: that was chosen on other items; None where none was.
        outlines: scores outlines of the drawn and the true mask, in pixels; None where nobody asks.

    Returns:
        dice, dice_present, iou_present, false_mask: of `lightbox.eval.masks.score_mask`, cut at 0.5.
        dice_paper, dice_chosen: dice_present, cut at `PAPER_THRESHOLD` and at `threshold`, without which it is None.
        dice_oblong, dice_official: dice_present of images that are not square, the second on the official code's way
            back to the image (`image_frames.official_reading`); None for square images, where both ways are one.
        hd95, assd: of `lightbox.eval.mask_boundaries.score_boundaries` in pixels, cut at 0.5; None without `outlines`.
    """
    drawn = _union(logits, drawn_at)
    own = score_mask(drawn, true)
    by_cut: Scores = {"dice_paper": PAPER_THRESHOLD, "dice_chosen": threshold}
    for name, cut in by_cut.items():
        if cut is not None:
            by_cut[name] = score_mask(_union(logits, partial(drawn_at, threshold=cut)), true)["dice_present"]
    is_square = true.shape[0] == true.shape[1]
    official = None if is_square else score_mask(_union(logits, _official), true)["dice_present"]
    ways = {"dice_oblong": None if is_square else own["dice_present"], "dice_official": official}
    apart = {} if outlines is None else outlines(drawn, true)
    return {**{name: own[name] for name in SHOWN}, **by_cut, **ways, **{name: apart.get(name) for name in DISTANCES}}


def chosen_threshold(
    logits: Sequence[Sequence[Float[np.ndarray, "_ _"]]], true: Sequence[Bool[np.ndarray, "_ _"]]
) -> float:
    """`best_threshold` of answers with any number of masks, over what is there; the usual one where nothing is.

    Args:
        logits: of each answer's masks.
        true: its true mask.
    """
    there = [(own, mask) for own, mask in zip(logits, true, strict=True) if mask.any()]
    whole = [np.maximum.reduce([as_logits(np.zeros_like(mask)), *own]) for own, mask in there]
    return best_threshold(whole, [mask for _, mask in there]) if there else THRESHOLD


def as_logits(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """A mask that was drawn without a model, as logits that both thresholds cut alike, float32."""
    return np.where(mask, np.float32(SURE), np.float32(-SURE))


def _official(logits: np.ndarray) -> np.ndarray:
    return drawn_at(official_reading(logits), THRESHOLD)


def _union(logits: Sequence[np.ndarray], cut: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    return np.logical_or.reduce([cut(one) for one in logits]) if len(logits) else None
