"""Per-item scores: what an answer is worth, and what a mask is. No torch."""

from collections.abc import Sequence

import numpy as np

from lightbox.eval.answers import words_of
from lightbox.paper.drawn_regions import MASK, PRESENCE, Asked
from lightbox.paper.mask_scores import Outlines, score_drawn
from lightbox.paper.pixel_items import SEG
from lightbox.paper.samples import Sample
from medplib.data import target_of

PATCH_AREA_PX = 64
"""Of a patch of the tiny tower; a smaller region never fills one."""
METRICS = (
    "score",  # `correct` of answers, `dice` of masks
    "own",  # the same of the tasks that the arm's stage learns; by it its learning rate is chosen
    "correct",  # 1 where an answer has the words of the true one, in order, and no others; null for masks
    "region",  # the same of region questions
    "region_large",  # of those about a region of a patch's area or more
    "region_small",  # and of less
    "presence",  # of presence questions
    "chance",  # of region questions: one over the answers that regions of the picture have
    "dice",  # of masks at 0.5; 1 where both are empty
    "dice_present",  # of what is there
    "iou_present",
    "dice_paper",  # at the official threshold, of what is there
    "dice_chosen",  # at the one that is best on validation, of what is there; null where none was chosen
    "dice_oblong",  # at 0.5, of what is there in pictures that are not square
    "dice_official",  # the same, on the official code's way back to the picture
    "hd95",  # of masks at 0.5 under the own picture: 95th percentile of the distances of their outlines, pixels
    "assd",  # the same, mean distance over both outlines; null where one of the two masks is empty
    "emitted",  # 1 where a mask was said to be there
    "false_mask",  # of what is absent: 1 where any pixel is drawn
    "rows",  # of cost: rows that enter experts, by tokens
    "flops_prefill",  # of cost: operations of the mixture by those of one expert's model, reading a prompt
    "flops_decode",  # and saying one more word
    "copied_gap",  # of cost: largest difference of logits between a model and two copies of it, by the largest logit
    "rows_official_train",  # of cost: rows that enter experts padded as the official code does in training, by tokens
    "rows_official_eval",  # and in evaluation
)
ScoreRow = dict[str, str | float | None]


def score(
    sample: Sample[Asked],
    condition: str,
    text: str,
    logits: Sequence[np.ndarray] = (),
    threshold: float | None = None,
    outlines: Outlines | None = None,
) -> ScoreRow:
    """One row of the table.

    Args:
        sample: with the true answer or mask.
        condition: under which it was asked.
        text: what was generated.
        logits: h w of each mask that the text speaks of; drawn are pixels in any of them.
        threshold: that was chosen on validation; None where none was.
        outlines: see `score_drawn`.
    """
    asked = sample.record
    row = blank(sample.id, condition, asked.kind)
    if asked.task == MASK:
        assert asked.mask is not None
        drawn = score_drawn(logits, asked.mask, threshold, outlines)
        return row | drawn | {"score": drawn["dice"], "emitted": float(SEG in text)}
    correct = float(words_of(text) == words_of(target_of(asked)))
    row |= {"score": correct, "correct": correct}
    if asked.task == PRESENCE:
        return row | {"presence": correct}
    assert asked.mask is not None  # a region question; captions are learnt and not scored
    size = "region_small" if asked.mask.sum() < PATCH_AREA_PX else "region_large"
    return row | {"region": correct, size: correct, "chance": 1 / len(asked.options)}


def blank(item: str, condition: str, kind: str) -> ScoreRow:
    """A row without scores."""
    return {"item": item, "condition": condition, "kind": kind, **dict.fromkeys(METRICS)}
