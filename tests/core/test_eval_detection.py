"""COCO average precision, against pycocotools on random sets."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightbox.eval.boxes import LabelledBox
from lightbox.eval.detection import average_precision
from lightbox.records import Box

CLASSES = ("a", "b", "c", "d")


def random_boxes(rng, n, classes, scores):
    x0, y0 = rng.uniform(0, 0.7, (2, n))
    width, height = rng.uniform(0.05, 0.3, (2, n))
    names, sure = rng.integers(len(classes), size=n), rng.choice(scores, size=n)
    return [
        LabelledBox(classes[k], Box(x, y, x + w, y + h), float(s))
        for k, x, y, w, h, s in zip(names, x0.tolist(), y0.tolist(), width.tolist(), height.tolist(), sure, strict=True)
    ]


def draw_set(seed):
    """Drawn and true boxes of up to 8 images; every fifth set without drawn, every seventh without true boxes."""
    rng = np.random.default_rng(seed)
    scores = [0.5, 1.0] if seed % 2 else rng.uniform(size=50)  # ties in every second set
    true = [
        random_boxes(rng, rng.integers(0, 5) * (seed % 7 > 0), CLASSES[:3], [1.0]) for _ in range(rng.integers(1, 9))
    ]
    drawn = []
    for boxes in true:
        near = [box._replace(box=moved(rng, box.box), score=float(rng.choice(scores))) for box in boxes]
        drawn.append((near + random_boxes(rng, rng.integers(0, 3), CLASSES, scores)) * (seed % 5 > 0))
    return drawn, true


def moved(rng, box):
    x, y = rng.normal(0, 0.02, 2).tolist()
    return Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y)


def by_pycocotools(drawn, true):
    """mAP50, mAP75 and mAP50:95 in pixels of an image of 1000 x 800; -1 where there is no true box."""

    def rows(images):
        return [
            {"image_id": i, "category_id": CLASSES.index(label) + 1, "score": score, "iscrowd": 0,
             "bbox": [x0 * 1000, y0 * 800, (x1 - x0) * 1000, (y1 - y0) * 800], "area": (x1 - x0) * (y1 - y0) * 8e5}
            for i, boxes in enumerate(images)
            for label, (x0, y0, x1, y1), score in boxes
        ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        truth, answer = COCO(), COCO()
        for coco, images in ((truth, true), (answer, drawn)):
            annotations = [row | {"id": number} for number, row in enumerate(rows(images), start=1)]
            coco.dataset = {
                "images": [{"id": i, "width": 1000, "height": 800} for i in range(len(true))],
                "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
                "annotations": annotations,
            }
            coco.createIndex()
        peer = COCOeval(truth, answer, "bbox")
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    return peer.stats[1], peer.stats[2], peer.stats[0]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_ap_equals_that_of_pycocotools_on_200_random_sets(first):
    n_empty, furthest = 0, 0.0
    for seed in range(first, first + 50):
        drawn, true = draw_set(seed)
        ours = average_precision(drawn, true)
        theirs = by_pycocotools(drawn, true)
        if ours.map50 is None:
            n_empty += 1
            assert theirs == (-1, -1, -1)
            continue
        pairs = zip((ours.map50, ours.map75, ours.map50_95), theirs, strict=True)
        furthest = max(furthest, *(abs(a - b) for a, b in pairs))
    assert n_empty > 5
    assert furthest <= 1e-6


def test_a_surer_wrong_box_costs_and_an_unsure_one_does_not():
    right, wrong = Box(0.1, 0.1, 0.4, 0.4), Box(0.6, 0.6, 0.9, 0.9)
    true = [[LabelledBox("mass", right)]]
    unsure = average_precision([[LabelledBox("mass", right, 0.9), LabelledBox("mass", wrong, 0.2)]], true)
    assert (unsure.map50, unsure.map50_95) == (1.0, 1.0)
    assert average_precision([[LabelledBox("mass", right, 0.2), LabelledBox("mass", wrong, 0.9)]], true).map50 == 0.5


def test_no_class_no_precision():
    drawn = [[LabelledBox("mass", Box(0, 0, 1, 1))]]
    assert average_precision(drawn, [[]]).map50 is None
    assert average_precision([], []).by_class == {}
    true = [[LabelledBox("nodule", Box(0, 0, 1, 1))]]
    assert average_precision(drawn, true).by_class == {"nodule": 0.0}  # a class that no image has counts nowhere


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="1 images with drawn boxes, 0 with true ones"):
        average_precision([[]], [])
