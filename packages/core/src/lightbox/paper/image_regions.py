"""Regions of an image shown to a model: marked, cut out and enlarged, windowed, or moved elsewhere. No torch.

Boxes are fractions, xyxy, half-open (`lightbox.records.Box`); `to_px` and `from_px` are the two edges to pixels. So a
box means the same on the full-resolution original and on a smaller view of it.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lightbox.records import Box, box_iou

RED = (255, 0, 0)
DRAWS, JITTERS = 64, 100
SLACK_PX = 1e-6  # k / w * w may be a little more or less than k


def to_px(box: Sequence[float], size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels that a box with x0 < x1 and y0 < y1 touches, half-open, at least one; `size_px` is width and height.

    Example:
        >>> to_px((0.0, 0.25, 1.0, 0.26), (8, 8))
        (0, 2, 8, 3)
    """
    ends = [value * side for value, side in zip(box, (*size_px, *size_px), strict=True)]
    x0, y0 = (min(math.floor(end + SLACK_PX), side - 1) for end, side in zip(ends[:2], size_px, strict=True))
    x1, y1 = (math.ceil(end - SLACK_PX) for end in ends[2:])
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def from_px(box_px: Sequence[float], size_px: tuple[int, int]) -> Box:
    """A box in pixels as fractions of an image of `size_px`; not checked, see `box_fault`."""
    return Box(*(end / side for end, side in zip(box_px, (*size_px, *size_px), strict=True)))


def box_fault(box: Sequence[float]) -> str:
    """Why four fractions are no box of an image, "outside" or "inverted"; "" where they are one.

    Example:
        >>> box_fault((0.0, 0.0, 1.0, 1.0)), box_fault((0.5, 0.0, 0.5, 1.0)), box_fault((0.0, 0.0, 1.1, 1.0))
        ('', 'inverted', 'outside')
    """
    x0, y0, x1, y1 = box
    if not all(0 <= value <= 1 for value in box):  # NaN is not
        return "outside"
    return "" if x0 < x1 and y0 < y1 else "inverted"


def view(image: Image.Image, view_px: int | None = None) -> Image.Image:
    """An image as a policy sees it: RGB, whatever it was, its longer side `view_px` pixels long."""
    colour = image.convert("RGB")
    return colour if view_px is None else colour.resize(view_size(image.size, view_px), Image.Resampling.BICUBIC)


def view_size(size_px: tuple[int, int], view_px: int | None) -> tuple[int, int]:
    """Width and height of the view of an image of `size_px`."""
    scale = 1.0 if view_px is None else view_px / max(size_px)
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def is_grey(image: Image.Image) -> bool:
    """Whether an 8-bit image has no colour; also where three channels say the same."""
    red, green, blue = (np.asarray(channel) for channel in image.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())


def marked(shown: Image.Image, boxes: Sequence[Box], *, line_px: int = 3) -> Image.Image:
    """A copy with red outlines around boxes, so that they hide nothing of what is inside.

    Args:
        shown: RGB, both sides over 2 * line_px.
        boxes: an outline is cut off at the image's edge; that of the whole image, which would vanish, is drawn inside.
        line_px: width of the outline.
    """
    is_outline = np.zeros(shown.size[::-1], dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = to_px(box, shown.size)
        if (x0, y0, x1, y1) == (0, 0, *shown.size):  # drawn outside, its mark would not be seen
            x0, y0, x1, y1 = line_px, line_px, x1 - line_px, y1 - line_px
        ring = np.zeros_like(is_outline)
        ring[max(y0 - line_px, 0) : y1 + line_px, max(x0 - line_px, 0) : x1 + line_px] = True
        ring[y0:y1, x0:x1] = False
        is_outline |= ring
    return Image.fromarray(np.where(is_outline[..., None], np.uint8(RED), np.asarray(shown)))


def cropped(image: Image.Image, box: Box, size_px: tuple[int, int]) -> Image.Image:
    """A box cut out and resized, RGB; first widened to the shape of the image, so that nothing is distorted.

    Args:
        image: the full-resolution original.
        box: at an edge it is widened inward.
        size_px: width and height of the result, of the image's shape.
    """
    x0, y0, x1, y1 = to_px(box, image.size)
    share = max((x1 - x0) / image.width, (y1 - y0) / image.height)
    width, height = image.width * share, image.height * share
    left = min(max((x0 + x1 - width) / 2, 0), image.width - width)
    top = min(max((y0 + y1 - height) / 2, 0), image.height - height)
    edges = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.convert("RGB").resize(size_px, Image.Resampling.BICUBIC, box=edges)


def windowed(image: Image.Image, window: tuple[float, float]) -> Image.Image:
    """Grey values from level - width / 2 to level + width / 2 spread over the whole range, others cut."""
    level, width = window
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
    return Image.fromarray((np.clip((grey - level) / width + 0.5, 0, 1) * 255).round().astype(np.uint8))


def box_elsewhere(box: Box, image: Image.Image, avoided: Sequence[Box], rng: np.random.Generator) -> Box:
    """A box of as many pixels each way that meets `avoided` as little as any of `DRAWS` draws."""
    x0, y0, x1, y1 = to_px(box, image.size)
    lefts = rng.integers(0, image.width - (x1 - x0) + 1, DRAWS).tolist()
    tops = rng.integers(0, image.height - (y1 - y0) + 1, DRAWS).tolist()
    corners = zip(lefts, tops, strict=True)
    drawn = [from_px((left, top, left + x1 - x0, top + y1 - y0), image.size) for left, top in corners]
    return min(drawn, key=lambda one: max(box_iou(one, other) for other in avoided))


def jittered(box: Box, rng: np.random.Generator, low: float = 0.5, high: float = 0.9) -> Box:
    """A box whose IoU with a true one lies in [low, high], inside the image: as imprecise as a reader's.

    Each end moves by up to half the side, until the overlap fits; after `JITTERS` draws the box is shrunk instead.
    """
    sides = np.array([box.x1 - box.x0, box.y1 - box.y0] * 2)
    for _ in range(JITTERS):
        moved = Box(*np.clip(np.array(box) + rng.uniform(-0.5, 0.5, 4) * sides, 0, 1).tolist())
        if moved.x0 < moved.x1 and moved.y0 < moved.y1 and low <= box_iou(moved, box) <= high:
            return moved
    margin = sides * (1 - ((low + high) / 2) ** 0.5) / 2
    return Box(*(np.array(box) + margin * (1, 1, -1, -1)).tolist())
