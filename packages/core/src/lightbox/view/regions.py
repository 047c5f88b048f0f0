"""What was drawn on the image, as the page sends it, turned into a region that a model takes. No torch."""

import json
import math
from typing import Any

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.pixel_prompts import Prompt, Scribble, mask_of, point
from lightbox.records import Box

TOOLS = ("point", "box", "mask")
MOST_SPOTS = 4000
DRAWN_PX = 256
"""A mask is drawn at this size at most and then enlarged: a stroke is no finer than that."""


def region_of(drawn: str | None, image_hw: tuple[int, int]) -> Prompt | None:
    """The region that the page sent.

    Args:
        drawn: JSON `{"tool": "point"|"box"|"mask", "strokes": [[[x, y], ...], ...], "width": w}`, places as fractions
            of the image and the width of a brush as a fraction of its shorter side; None or "" where nothing was drawn.
        image_hw: height and width of the image.

    Returns:
        A point, a box (from the first and last place of its stroke), a mask h w of bool, or None.

    Raises:
        RequestError: not of that form, a place outside the image, or a region of no extent.
    """
    if not drawn:
        return None
    try:
        sent = json.loads(drawn)
        tool = sent["tool"]
        strokes = [[(float(x), float(y)) for x, y in stroke] for stroke in sent["strokes"]]
        width = float(sent.get("width", 0.05))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise _refused("cannot be read") from err
    spots = [spot for stroke in strokes for spot in stroke]
    if tool not in TOOLS or not all(strokes) or not 0 < len(spots) <= MOST_SPOTS or not 0 < width <= 1:
        raise _refused(f"is a {tool!r} of {len(spots)} places")
    if not all(math.isfinite(side) and 0 <= side <= 1 for spot in spots for side in spot):
        raise _refused("lies outside of the image")
    if tool == "point":
        return point(*spots[0])
    if tool == "mask":
        return _mask(strokes, width, image_hw)
    (x0, y0), (x1, y1) = spots[0], spots[-1]
    box = Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    if box.area <= 0:
        raise _refused("is a box without extent")
    return box


def _mask(strokes: list[list[tuple[float, float]]], width: float, image_hw: tuple[int, int]) -> np.ndarray:
    """The pixels under the brush."""
    scale = min(1.0, DRAWN_PX / max(image_hw))
    small_hw = max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))
    mask = np.zeros(small_hw, dtype=bool)
    for stroke in strokes:
        mask |= mask_of(Scribble(tuple(stroke), width), small_hw)
    rows, columns = (np.arange(side) * small // side for side, small in zip(image_hw, small_hw, strict=True))
    return mask[rows][:, columns]


def _refused(what: str) -> RequestError:
    return RequestError(
        f"The region that was drawn {what}",
        "A region is a point, a box or a mask inside the image",
        "Clear it, and draw it again",
    )


def words_of(region: Any) -> str:
    """A region in words, for the page: "box 0.10, 0.20 to 0.50, 0.60".

    Example:
        >>> words_of(Box(0.1, 0.2, 0.5, 0.6))
        'box 0.10, 0.20 to 0.50, 0.60'
    """
    if region is None:
        return ""
    if isinstance(region, Box):
        return f"box {region.x0:.2f}, {region.y0:.2f} to {region.x1:.2f}, {region.y1:.2f}"
    if isinstance(region, Scribble):
        x, y = region.spots[0]
        return f"point {x:.2f}, {y:.2f}"
    return f"mask, {float(np.mean(region)):.1%} of the image"
