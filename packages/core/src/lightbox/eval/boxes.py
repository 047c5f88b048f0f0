"""Are the boxes right? Best overlap, accuracy, false alarms and kinds of error per item; RoDeO over a set. No torch.

An item is one image and one class asked for: the boxes that a model drew and the true ones, none where the finding is
absent. A text that cannot be parsed draws no box and stays in every mean.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco
from scipy.optimize import linear_sum_assignment

from lightbox.records import Box

ERRORS = ("wrong region", "poor overlap", "near miss", "over-detection", "under-detection")
OVERLAPS = ("best_iou", "paired_iou", "acc30", "acc50")
_LEAST = 0.1  # below it, TIDE (Bolya et al. 2020, section 2.2) calls a box background; from 0.5 on, a hit


class LabelledBox(NamedTuple):
    """A box, what it is of, and how sure a model is, in [0, 1]; truth is sure."""

    label: str
    box: Box
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class BoxScore:
    """Scores of one item.

    `best_iou` is the mean over true boxes of the best IoU with a drawn one, in [0, 1]; `paired_iou` pairs boxes so that
    overlaps are largest together and divides their sum by the larger of the numbers drawn and true, so that a box too
    many costs as much as one too few; `acc30` and `acc50` say whether any drawn box reaches that IoU with any true one;
    all four are None where the finding is absent. `is_false_alarm` says whether a box was drawn where the finding is
    absent, None where it is present. `counts` has the number of hits under "hit" and of each of `ERRORS`.
    """

    best_iou: float | None
    paired_iou: float | None
    acc30: bool | None
    acc50: bool | None
    is_false_alarm: bool | None
    counts: dict[str, int]


def iou_matrix(drawn: Sequence[Box], true: Sequence[Box]) -> np.ndarray:
    """IoU of each drawn box with each true one, float64 in [0, 1], n_drawn x n_true; by faster-coco-eval.

    Example:
        >>> iou_matrix([Box(0.0, 0.0, 0.5, 0.5)], [Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.5, 1.0, 1.0)]).tolist()
        [[0.5, 0.0]]
    """
    if not (drawn and true):  # the library refuses empty lists
        return np.zeros((len(drawn), len(true)))
    return np.asarray(coco.iou(_xywh(drawn), _xywh(true), [0] * len(true)), dtype=np.float64)


def score_boxes(drawn: Sequence[Box], true: Sequence[Box]) -> BoxScore:
    """Score the boxes of one item; no drawn box over a finding scores 0, and none over an absent one is right.

    Acc@t follows the K2Sight authors' evaluation (any pair), and the best overlap asks only the best box, so a model
    that draws many boxes gains by either: `paired_iou` charges for them.

    Example:
        >>> score_boxes([Box(0.0, 0.0, 0.5, 0.5)], [Box(0.0, 0.0, 0.5, 1.0)]).best_iou
        0.5
    """
    ious = iou_matrix(drawn, true)
    paired = ious[linear_sum_assignment(ious, maximize=True)]
    counts = _count_errors(paired, *ious.shape)
    if not true:
        return BoxScore(None, None, None, None, len(drawn) > 0, counts)
    top = float(ious.max(initial=0.0))
    best = float(ious.max(axis=0, initial=0.0).mean())
    return BoxScore(best, float(paired.sum()) / max(ious.shape), top >= 0.3, top >= 0.5, None, counts)


def summary(scores: Sequence[BoxScore]) -> dict[str, float | None]:
    """Means over items: `OVERLAPS` over present findings, false_alarm_rate over absent ones; and errors.

    Each error is a share in [0, 1]: over-detection of the drawn boxes, all others of the true boxes, so that the shares
    of hits and of those others are 1 together. None where there is nothing to take a mean of.
    """
    present = [score for score in scores if score.best_iou is not None]
    absent = [score.is_false_alarm for score in scores if score.is_false_alarm is not None]
    total: Counter[str] = Counter()
    for score in scores:
        total.update(score.counts)
    n_true = total.total() - total["over-detection"]
    n_drawn = total.total() - total["under-detection"]
    means = {name: _mean([float(getattr(score, name)) for score in present]) for name in OVERLAPS}
    shares = {
        name: total[name] / whole if (whole := n_drawn if name == "over-detection" else n_true) else None
        for name in ("hit", *ERRORS)
    }
    return {**means, "false_alarm_rate": _mean([float(alarm) for alarm in absent]), **shares}


def _count_errors(paired: np.ndarray, n_drawn: int, n_true: int) -> dict[str, int]:
    """Hits and errors of one item, from the IoU of each pair of boxes that belong together.

    IoU below 0.1 is a wrong region, below 0.3 poor overlap, below 0.5 a near miss; boxes without a partner are over-
    or under-detections.
    """
    kinds = np.digitize(paired, [_LEAST, 0.3, 0.5])
    names = ("wrong region", "poor overlap", "near miss", "hit")
    counts = {name: int((kinds == place).sum()) for place, name in enumerate(names)}
    return counts | {"over-detection": n_drawn - len(paired), "under-detection": n_true - len(paired)}


# ---- RoDeO


@dataclass(frozen=True, slots=True)
class Rodeo:
    """Robust Detection Outcome: three parts and their harmonic mean, each in [0, 1]."""

    total: float
    localisation: float
    shape: float
    classification: float


def rodeo(
    drawn: Sequence[Sequence[LabelledBox]],
    true: Sequence[Sequence[LabelledBox]],
    *,
    classes: Sequence[str],
    class_weight: float | None = None,
) -> Rodeo:
    """RoDeO of Meissen et al., "Robust Detection Outcome" (MIDL 2023), Eq. 2 to 6, over a set of images.

    Boxes of an image are paired at the least sum of -GIoU - class_weight [same class]. It rewards boxes that lie
    roughly in the middle: models with mAP50 near 0 reach 0.45, so it never stands alone. Written from the paper and
    checked against github.com/FeliMe/RoDeO at 280a959 (MIT). Unlike there, a drawn label outside `classes` is of no
    class in place of an error.

    Args:
        drawn, true: boxes of each image, in the same order; scores are not read.
        classes: every class of the data set, two or more; shares of pairs are taken over all of them.
        class_weight: >= 0; None takes the correlation of drawn and true classes over images, at least 0.

    Raises:
        ValueError: fewer than two classes, a true label outside them, or lists of different length.
    """
    if len(classes) < 2 or len(drawn) != len(true):
        raise ValueError(f"RoDeO needs two classes and equal lists: {len(classes)}, {len(drawn)} and {len(true)}")
    unknown = {box.label for boxes in true for box in boxes} - set(classes)
    if unknown:
        raise ValueError(f"True labels outside the classes: {sorted(unknown)}")
    if class_weight is None:
        present = [
            [[name in {box.label for box in boxes} for name in classes] for boxes in images] for images in (drawn, true)
        ]
        class_weight = _correlation(*present)
    pairs: list[tuple[LabelledBox, LabelledBox]] = []
    n_alone = 0
    for boxes, truths in zip(drawn, true, strict=True):
        same = np.array([[a.label == b.label for b in truths] for a in boxes], dtype=float)
        gain = _giou_matrix([a.box for a in boxes], [b.box for b in truths])
        rows, columns = linear_sum_assignment(gain + class_weight * same.reshape(gain.shape), maximize=True)
        pairs += [(boxes[row], truths[column]) for row, column in zip(rows, columns, strict=True)]
        n_alone += len(boxes) + len(truths) - 2 * len(rows)
    if not pairs:
        return Rodeo(0.0, 0.0, 0.0, 0.0)
    a, b = (np.array([pair[side].box for pair in pairs]) for side in (0, 1))
    sizes_a, sizes_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    apart = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2 / sizes_b) ** 2
    shared = np.minimum(sizes_a, sizes_b).prod(axis=1)
    labels = [[[pair[side].label == name for name in classes] for pair in pairs] for side in (0, 1)]
    parts = (
        float(np.exp2(-apart.sum(axis=1)).mean()),  # Eq. 2
        float((shared / (sizes_a.prod(axis=1) + sizes_b.prod(axis=1) - shared)).mean()),  # Eq. 3: corners aligned
        _correlation(*labels),  # Eq. 4
    )
    weighted = [part * len(pairs) / (len(pairs) + n_alone) for part in parts]  # Eq. 5
    return Rodeo(3 / sum(1 / (part + 1e-6) for part in weighted), *weighted)  # Eq. 6


def _giou_matrix(drawn: Sequence[Box], true: Sequence[Box]) -> np.ndarray:
    """Generalised IoU in (-1, 1], n_drawn x n_true."""
    a, b = np.array(drawn).reshape(-1, 1, 4), np.array(true).reshape(1, -1, 4)
    ious = iou_matrix(drawn, true)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    union = (areas[0] + areas[1]) / (1 + ious)
    hull = (np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])).prod(axis=-1)
    return ious - (hull - union) / hull


def _correlation(a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]]) -> float:
    """Matthews correlation of two tables of truth values, at least 0; 0 where one of them is constant."""
    x, y = np.array(a, dtype=float).ravel(), np.array(b, dtype=float).ravel()
    if not x.size or x.min() == x.max() or y.min() == y.max():
        return 0.0
    return max(0.0, float(np.corrcoef(x, y)[0, 1]))  # of two binary vectors, Pearson's is Matthews'


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _xywh(boxes: Sequence[Box]) -> np.ndarray:
    """The form that COCO counts in: left, top, width, height."""
    corners = np.array(boxes, dtype=np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
