"""Per-item scores: what the boxes drawn for one item are worth, and what a whole set is worth. No torch."""

from collections.abc import Mapping, Sequence

from k2sight.data import Target
from lightbox.backbones.box_text import BoxReading
from lightbox.eval.boxes import ERRORS, OVERLAPS, iou_matrix, rodeo, score_boxes
from lightbox.eval.boxes import LabelledBox as Drawn
from lightbox.eval.detection import average_precision
from lightbox.knowledge import ATTRIBUTES
from lightbox.paper.samples import Sample

COUNTS = {name: name.replace(" ", "_").replace("-", "_") for name in ("hit", *ERRORS)}
"""What a box of an item can be -> its column: how many of it."""
ITEM_METRICS = (
    "paired_iou",  # overlap of boxes paired one to one, over the larger number of the two; null where absent
    "best_iou",  # the paper's authors': mean over true boxes of the best overlap, whatever else is drawn; likewise
    "acc30",  # 1 where any drawn box reaches IoU 0.3 with any true one; likewise
    "acc50",  # likewise 0.5
    "boxes",  # how many were drawn
    "false_alarm",  # 1 where a box is drawn for an absent finding; null where present
    "parsed",  # 1 where the text gives a box or says that there is none
    *COUNTS.values(),  # hits and kinds of error, drawn boxes and missed ones; see `lightbox.eval.boxes.ERRORS`
    "confidence",  # of the surest box, 0 to 1; null without boxes
    *(f"paired_iou_beside_{kind}" for kind in ATTRIBUTES),  # where something differs in that attribute alone
    *(f"paired_iou_apart_{kind}" for kind in ATTRIBUTES),  # where nothing does
    "moved",  # 1 where the drawn boxes overlap the chosen neighbour more than what the item is about; null without one
)
SET_METRICS = ("map50", "map75", "map50_95", "rodeo", "rodeo_localisation", "rodeo_shape", "rodeo_classification")
"""Of all items of a part under a condition, in [0, 1]; on rows of their own, whose kind says "set"."""
METRICS = ITEM_METRICS + SET_METRICS
ScoreRow = dict[str, str | float | None]


def score(sample: Sample[Target], condition: str, reading: BoxReading) -> ScoreRow:
    """One row of the table; boxes count as boxes of what was asked for, whatever label the model gave them."""
    target = sample.record
    drawn = [box.box for box in reading.boxes]
    row = _blank(sample.id, condition, target.part)
    its = score_boxes(drawn, target.boxes)
    values = {name: getattr(its, name) for name in OVERLAPS} | {"false_alarm": its.is_false_alarm}
    row |= {name: None if value is None else float(value) for name, value in values.items()}
    row |= {COUNTS[name]: float(its.counts[name]) for name in COUNTS}
    row |= {"boxes": float(len(drawn)), "parsed": float(reading.is_parsed)}
    row["confidence"] = max((box.score for box in reading.boxes), default=None)
    for kind in ATTRIBUTES if target.attributes else ():  # real findings have none, and so no neighbours
        row[f"paired_iou_{'beside' if kind in target.neighbours else 'apart'}_{kind}"] = row["paired_iou"]
    if target.neighbours:
        own, its = (iou_matrix(drawn, boxes).max(initial=0.0) for boxes in (target.boxes, target.chosen.boxes))
        row["moved"] = float(its > own)
    return row


def score_set(samples: Sequence[Sample[Target]], condition: str, readings: Sequence[BoxReading]) -> list[ScoreRow]:
    """A row for each part: AP over its classes by the confidences of the boxes, and RoDeO.

    Each item is an image of its own here, since a model is asked for one class at a time. A box counts as one of the
    class that was asked for, so RoDeO's part for the class is nearly given.
    """
    rows = []
    for part in dict.fromkeys(sample.record.part for sample in samples):
        pairs = [(s.record, r) for s, r in zip(samples, readings, strict=True) if s.record.part == part]
        true = [[Drawn(target.name, box) for box in target.boxes] for target, _ in pairs]
        drawn = [[Drawn(target.name, box.box, box.score) for box in reading.boxes] for target, reading in pairs]
        classes = sorted({target.name for target, _ in pairs})
        ap = average_precision(drawn, true)
        values = {"map50": ap.map50, "map75": ap.map75, "map50_95": ap.map50_95}
        if len(classes) > 1:
            its = rodeo(drawn, true, classes=classes)
            values |= {"rodeo": its.total, "rodeo_localisation": its.localisation, "rodeo_shape": its.shape}
            values["rodeo_classification"] = its.classification
        rows.append(_blank(f"{part}/set", condition, f"set {part}") | values)
    return rows


def _blank(item: str, condition: str, kind: str) -> ScoreRow:
    names: Mapping[str, str] = {"item": item, "condition": condition, "kind": kind}
    return {**names, **dict.fromkeys(METRICS)}
