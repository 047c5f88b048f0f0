"""What the tiny `qwen2_5_vl` has learned: answers by kind, names by lesion size, and boxes.

Answers and boxes are scored with the image, with a mean grey one, and with that of another case. Boxes are drawn
through the backbone, from pixels to text, as a user gets them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from lightbox.backbones.backbone import Backbone
from lightbox.eval.boxes import score_boxes
from lightbox.pretrain.llava_576_rows import ABSENT, ALL, BoxTurn
from lightbox.pretrain.llava_576_scores import modes_of
from lightbox.pretrain.llava_rows import NAMING, ChatSet, majority_answers
from lightbox.pretrain.llava_scores import score_answers
from lightbox.pretrain.qwen2_5_vl_rows import SEEN_PX, WholeRows, WholeSet, all_but_boxes, boxes_in, token_logits
from lightbox.pretrain.tower import MEAN
from lightbox.records import Box

BATCH = 40
BOX_CASES = 200
ONE_NAME, ALL_NAMES = 16, 40
"""Longest answers: three boxes of four tokens; three with names."""
GREY = round(255 * MEAN)


def by_size(data: WholeSet) -> ChatSet:
    """The same images with the questions what is seen in a place, by size and scale of what lies there.

    Kinds are "naming_small_50" and so on.
    """
    turns = []
    for case, own, scale in zip(data.cases, data.turns, data.scales, strict=True):
        sizes = {f.attributes["location"]: f.attributes["size"] for f in case.findings}
        asked = [(t, next(where for where in sizes if where in t.prompt)) for t in own if t.kind == NAMING]
        turns.append([own[0], *(replace(t, kind=f"{NAMING}_{sizes[where]}_{scale}") for t, where in asked)])
    return ChatSet(data.cases, turns)


def shown_images(data: WholeSet, indices: Sequence[int]) -> dict[str, list[Image.Image]]:
    """What is shown of some cases, by the suffix of its scores: the image, mean grey, or that of the next case."""
    own = [Image.fromarray(pixels) for pixels in data.pixels(indices)]
    blank = Image.new("L", (SEEN_PX, SEEN_PX), GREY)
    return {"": own, "_blank": [blank] * len(own), "_shuffled": [*own[1:], *own[:1]]}


def score_located(backbone: Backbone, data: WholeSet, indices: Sequence[int]) -> dict[str, float]:
    """Boxes of some images by kind of turn.

    Args:
        backbone: the model as it is loaded from its folder.
        data: never trained on.
        indices: images that are asked about.

    Returns:
        In [0, 1]: `iou_` mean best overlap and `acc50_` share with a box at IoU 0.5, by kind of turn, and by size and
        scale of single findings; `paired_iou_box_all`, which charges for boxes too many; `false_alarms`, the share of
        absent classes for which a box was drawn.
    """
    scores: dict[str, float] = {}
    turns = [(k, turn) for k, i in enumerate(indices) for turn in data.turns[i] if isinstance(turn, BoxTurn)]
    for suffix, images in shown_images(data, indices).items():
        values: defaultdict[str, list[float]] = defaultdict(list)
        for is_all in (False, True):
            asked = [(k, turn) for k, turn in turns if (turn.kind == ALL) == is_all]
            texts = backbone.answer(
                [images[k] for k, _ in asked],
                [turn.prompt for _, turn in asked],
                max_new_tokens=ALL_NAMES if is_all else ONE_NAME,
                batch_size=BATCH,
            )
            for (_, turn), text in zip(asked, texts, strict=True):
                for name, value in box_values(turn, boxes_in(text)).items():
                    values[name].append(value)
        scores |= {f"{name}{suffix}": round(float(np.mean(each)), 4) for name, each in sorted(values.items())}
    return scores


def box_values(turn: BoxTurn, drawn: list[Box]) -> dict[str, float]:
    """What one answer adds to the means of `score_located`, by name."""
    if turn.kind == ABSENT:
        return {"false_alarms": float(bool(drawn))}
    if not turn.boxes:
        return {}  # all findings of an image without any
    score = score_boxes(drawn, turn.boxes)
    values = {f"paired_iou_{ALL}": score.paired_iou or 0.0} if turn.kind == ALL else {}
    for name in (turn.kind, *([turn.size] if turn.size else [])):
        values |= {f"iou_{name}": score.best_iou or 0.0, f"acc50_{name}": float(score.acc50 or 0)}
    return values


def score_qwen2_5_vl(
    model: Qwen2_5_VLForConditionalGeneration,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    *,
    train: WholeSet,
    held_back: WholeRows,
    blank: Tensor,
) -> dict[str, float]:
    """All scores of the card but those of the tower; those of text alone and of other images beside them.

    Args:
        model: in evaluation mode.
        backbone: the same as it is loaded from its folder.
        tokenizer: its own.
        train: gives the answers that the text alone suggests.
        held_back: never trained on; its data is a `WholeSet`.
        blank: patches of a mean grey image, (p, 4, c).
    """
    data = held_back.data
    assert isinstance(data, WholeSet), "scores need the sizes of lesions"
    asked = [turn for turns in train.turns for turn in turns if not isinstance(turn, BoxTurn)]
    text_only, n = majority_answers(asked), len(held_back)
    scores: dict[str, float] = {}
    for own, modes in ((all_but_boxes(data), modes_of(blank)), (by_size(data), {"": modes_of(blank)[""]})):
        rows = WholeRows.like(held_back, own, tokenizer)
        scores |= score_answers(model, rows, text_only=text_only, modes=modes, logits_of=token_logits, shown="features")
    # a stride, so that every world is among them
    return scores | score_located(backbone, data, list(range(0, n, max(1, n // BOX_CASES)))[:BOX_CASES])
