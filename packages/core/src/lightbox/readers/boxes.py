"""Boxes as rows give them, checked and turned into fractions of the image; boxes of several readers fused.

A box that ends up to `SLACK_PX` beyond the image is a rounding of whoever wrote it and is moved to the edge; farther
out it is an error, as is one that is inverted or empty.
"""

import math
from collections.abc import Mapping, Sequence

from lightbox.readers.rows import RowError, shown, text_field
from lightbox.records import Box, box_iou

SLACK_PX = 1.0
SLACK_FRAC = 1e-3  # where the size of the image is not known: one pixel of a thousand
FUSION_IOU = 0.1


def number_field(row: Mapping[str, object], name: str) -> float:
    """A finite number in a field, written as a number or as text; else a `RowError`."""
    text = text_field(row, name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RowError(name, f"is {shown(row[name])}, not a finite number")
    return value


def size_fields(row: Mapping[str, object], width: str, height: str) -> tuple[int, int]:
    """Width and height of an image, whole pixels of at least 1, from two fields; else a `RowError`."""
    for name in (width, height):
        value = number_field(row, name)
        if value < 1 or value != int(value):
            raise RowError(name, f"is {shown(row[name])}, not a side in whole pixels")
    return int(number_field(row, width)), int(number_field(row, height))


def edges_fields(row: Mapping[str, object], names: Sequence[str]) -> tuple[float, float, float, float]:
    """Four numbers from four fields; half a box is refused by the field that is missing."""
    x0, y0, x1, y1 = (number_field(row, name) for name in names)
    return x0, y0, x1, y1


def edges_list(value: object, name: str) -> tuple[float, float, float, float]:
    """Four finite numbers from a list; anything else is a `RowError`."""
    if not isinstance(value, list) or len(value) != 4:
        raise RowError(name, f"is {shown(value)}, not a list of four numbers")
    x0, y0, x1, y1 = (number_field({name: item}, name) for item in value)
    return x0, y0, x1, y1


def xyxy_of_xywh(xywh: Sequence[float]) -> tuple[float, float, float, float]:
    """Edges of a box that is given by left, top, width and height, in the same unit."""
    x, y, width, height = xywh
    return x, y, x + width, y + height


def make_box(xyxy: Sequence[float], name: str, *, size_wh: tuple[int, int] | None) -> tuple[Box, bool]:
    """A box in fractions of the image, half-open, and whether it was moved to the edge.

    Args:
        xyxy: left, top, right, bottom, counted from 0.
        name: field for messages.
        size_wh: pixels of the image that the edges are measured in; None means that they are fractions.

    Raises:
        RowError: inverted, empty, outside the image, or above 1 where fractions are declared.
    """
    x0, y0, x1, y1 = xyxy
    width, height = size_wh or (1, 1)
    slack = SLACK_PX if size_wh else SLACK_FRAC
    if x1 < x0 or y1 < y0:
        raise RowError(name, f"is {tuple(xyxy)}, which is inverted: the right and bottom edges come last")
    if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
        where = f"an image of {width} x {height} pixels" if size_wh else "0..1"
        unit = ", pixels where fractions are declared" if not size_wh and min(xyxy) >= 0 and max(x1, y1) > 2 else ""
        raise RowError(name, f"is {tuple(xyxy)}, which lies outside {where}{unit}")
    inside = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise RowError(name, f"is {tuple(xyxy)}, which is empty")
    box = Box(inside[0] / width, inside[1] / height, inside[2] / width, inside[3] / height)
    return box, inside != tuple(xyxy)


def fuse_boxes(boxes: Sequence[Box], iou: float = FUSION_IOU) -> list[Box]:
    """Fuse boxes that several readers drew for one finding, by weighted box fusion with equal weights.

    Each box joins the fused box that it overlaps most, where that overlap exceeds `iou`, and the fused box becomes the
    mean of its members; otherwise it begins one. Differs from the published algorithm in nothing but the order of
    equal scores, which that leaves open: here boxes come sorted, so that the order of the rows does not matter.
    Solovyev, Wang, Gabruseva, Weighted boxes fusion, 2021; RadVLM fuses VinDr-CXR so, at 0.1.

    Example:
        >>> fuse_boxes([Box(0, 0, 0.4, 0.4), Box(0, 0, 0.2, 0.4), Box(0.6, 0.6, 0.9, 0.9)])
        [Box(x0=0.0, y0=0.0, x1=0.30000000000000004, y1=0.4), Box(x0=0.6, y0=0.6, x1=0.9, y1=0.9)]
    """
    members: list[list[Box]] = []
    fused: list[Box] = []
    for box in sorted(boxes):
        overlaps = [box_iou(box, other) for other in fused]
        best = max(range(len(fused)), key=overlaps.__getitem__, default=-1)
        if best >= 0 and overlaps[best] > iou:
            members[best].append(box)
            fused[best] = Box(*(sum(edges) / len(edges) for edges in zip(*members[best], strict=True)))
        else:
            members.append([box])
            fused.append(box)
    return fused
