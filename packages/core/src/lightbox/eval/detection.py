"""COCO average precision of labelled boxes with their scores, by faster-coco-eval. No torch.

AP ranks all boxes of a class by their score, so the scores must be a model's own: with every score 1, as in the K2Sight
authors' evaluation, the order of the file is the ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from lightbox.eval.boxes import LabelledBox


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """Means over the classes that have true boxes, each in [0, 1], None where no class has; `by_class` is AP50."""

    map50: float | None
    map75: float | None
    map50_95: float | None
    by_class: dict[str, float]


def average_precision(
    drawn: Sequence[Sequence[LabelledBox]], true: Sequence[Sequence[LabelledBox]], *, most_boxes: int = 100
) -> AveragePrecision:
    """AP as COCO defines it: IoU 0.50 to 0.95 in steps of 0.05, 101 points of recall, all sizes.

    Boxes of a class that no image has are not counted, as in COCO: the false-alarm rate of `lightbox.eval.boxes` tells
    of those. Boxes are fractions; IoU is the same in pixels.

    Args:
        drawn, true: boxes of each image, in the same order; an image may have none.
        most_boxes: at most so many of the surest boxes of a class count in an image, >= 1.

    Raises:
        ValueError: lists of different length.
    """
    if len(drawn) != len(true):
        raise ValueError(f"{len(drawn)} images with drawn boxes, {len(true)} with true ones")
    classes = sorted({box.label for boxes in true for box in boxes})
    if not classes:
        return AveragePrecision(None, None, None, {})
    ids = {name: place for place, name in enumerate(classes, start=1)}
    truth = COCO(
        {
            "images": [{"id": place, "width": 1, "height": 1} for place in range(len(true))],
            "categories": [{"id": place, "name": name} for name, place in ids.items()],
            "annotations": _annotations(true, ids),
        }
    )
    coco = COCOeval_faster(truth, truth.loadRes(_annotations(drawn, ids)), "bbox", print_function=lambda *_: None)
    coco.params.maxDets = [most_boxes]
    coco.evaluate()
    coco.accumulate()
    precision = np.asarray(coco.eval["precision"])[..., 0, -1]  # IoU threshold, recall point, class; -1 is none
    by_class = {name: float(precision[0, :, place].mean()) for place, name in enumerate(classes)}
    map50, map75, map50_95 = (float(part.mean()) for part in (precision[0], precision[5], precision))
    return AveragePrecision(map50, map75, map50_95, by_class)


def _annotations(images: Sequence[Sequence[LabelledBox]], ids: dict[str, int]) -> list[dict[str, object]]:
    """COCO's rows; boxes whose label is not in `ids` are left out."""
    rows: list[dict[str, object]] = []
    for image, boxes in enumerate(images):
        for label, box, score in boxes:
            if label in ids:
                sides = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
                row = {"image_id": image, "category_id": ids[label], "bbox": sides, "score": score}
                rows.append(row | {"id": len(rows) + 1, "area": sides[2] * sides[3], "iscrowd": 0})  # ids from 1 on
    return rows
