"""Boxes drawn on an image with their labels and scores, a strip or the words of a prediction under it. No torch."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightbox.errors import RequestError
from lightbox.readers.images import letterbox_box, load_image
from lightbox.records import Box

SIDE_PX = 384
LINE_PX = 14
LETTERS = 60
MARGIN_PX = 4
TRUE_COLOUR, DRAWN_COLOUR = (86, 180, 233), (255, 176, 0)  # apart for every kind of colour vision
Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A box to draw; a true one is dashed and says so, `score` in [0, 1] is written where there is one."""

    label: str
    box: Box
    score: float | None = None
    is_true: bool = False

    @property
    def text(self) -> str:
        """What stands at the box; empty for a box without label and score."""
        words = ("true" if self.is_true else "", self.label, "" if self.score is None else f"{self.score:.2f}")
        return " ".join(word for word in words if word)


def draw_boxes(pixels: np.ndarray, marks: Sequence[Mark], *, scale: int = 1) -> Image.Image:
    """Draw marks over an image.

    Lines have a black rim and words a black ground, so that both show on dark and on light; words stand at their box
    where there is room, else at the nearest free place with a line to the box.

    Args:
        pixels: uint8, h w or h w 3.
        marks: boxes as fractions of the image; what comes first gets its words nearest.
        scale: whole-number enlargement, nearest neighbour, so that every source pixel stays a visible square.

    Returns:
        RGB image of w * scale x h * scale pixels.
    """
    # not resampled: a pixel that a model saw stays visible as one
    picture = Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    line_px = max(2, min(picture.size) // 300)
    font = ImageFont.load_default(max(11, min(picture.size) // 40))
    edges = [_pixels(mark.box, picture.size) for mark in marks]
    # truth last: a dashed line over a solid one shows both, the other way it would vanish
    for mark, edge in sorted(zip(marks, edges, strict=True), key=lambda pair: pair[0].is_true):
        _outline(pen, edge, line_px, TRUE_COLOUR if mark.is_true else DRAWN_COLOUR, is_dashed=mark.is_true)
    taken: list[Rectangle] = []
    for mark, edge in zip(marks, edges, strict=True):
        if mark.text:
            colour = TRUE_COLOUR if mark.is_true else DRAWN_COLOUR
            width, height = pen.textbbox((0, 0), mark.text, font=font, anchor="lt")[2:]
            place = _free_place(edge, (width + 4, height + 4), picture.size, taken)
            taken.append(place)
            _lead(pen, place, edge, colour)
            pen.rectangle(place, fill=(0, 0, 0))
            pen.text((place[0] + 2, place[1] + 2), mark.text, fill=colour, font=font, anchor="lt")
    return picture


def with_strip(picture: Image.Image, strip: str) -> Image.Image:
    """The picture with one line of text under it, widened where the line needs it."""
    font = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(strip)
    size = (max(picture.width, int(right - left) + 2 * MARGIN_PX), picture.height + int(bottom - top) + 2 * MARGIN_PX)
    page = Image.new("RGB", size)
    page.paste(picture, (0, 0))
    ImageDraw.Draw(page).text((MARGIN_PX, picture.height + MARGIN_PX - top), strip, fill=(255, 255, 255), font=font)
    return page


def draw_prediction(image: Path, question: str, prediction: Mapping[str, Any], *, out: Path) -> None:
    """Write a PNG with the image above, its boxes on it, and the question and each text of the prediction below.

    Args:
        image: file.
        question: as asked.
        prediction: what a paper's `predict` returned; "boxes" are drawn, as fractions of the image, with their "labels"
            and "scores" where it has such lists; other texts are written with their names.
        out: the PNG.

    Raises:
        RequestError: where `out` does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise RequestError(f"--out is '{out}'", "The picture is written as PNG", "Name a file that ends in .png")
    texts = {name: value for name, value in prediction.items() if isinstance(value, str)}
    said = [f"question: {question}", *(f"{name}: {value or '-'}" for name, value in texts.items())]
    lines = [line for text in said for line in textwrap.wrap(text, LETTERS)]
    image_hw = load_image(image).shape[:2]
    shown = [letterbox_box(Box(*box), image_hw=image_hw, image_px=SIDE_PX) for box in prediction.get("boxes", ())]
    labels, scores = prediction.get("labels", [""] * len(shown)), prediction.get("scores", [None] * len(shown))
    marks = [Mark(label, box, score) for label, box, score in zip(labels, shown, scores, strict=True)]
    page = Image.new("RGB", (SIDE_PX, SIDE_PX + LINE_PX * (len(lines) + 1)))
    page.paste(draw_boxes(load_image(image, image_px=SIDE_PX, in_colour=True), marks), (0, 0))
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        pen.text((6, SIDE_PX + 4 + LINE_PX * row), line, fill=(255, 255, 255))
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out)


def in_image(box: Box, image_hw: tuple[int, int]) -> Box:
    """Undo `letterbox_box`: a region of the square around an image, as fractions of the image, cut at its edge.

    Example:
        >>> in_image(Box(0.0, 0.25, 1.0, 0.5), (100, 200))
        Box(x0=0.0, y0=0.0, x1=1.0, y1=0.5)
    """
    height, width = image_hw
    side = max(image_hw)
    x0, x1 = (min(max((x * side - (side - width) / 2) / width, 0.0), 1.0) for x in (box.x0, box.x1))
    y0, y1 = (min(max((y * side - (side - height) / 2) / height, 0.0), 1.0) for y in (box.y0, box.y1))
    return Box(x0, y0, x1, y1)


def _pixels(box: Box, size: tuple[int, int]) -> Rectangle:
    """A half-open box of fractions as the corners of its outline: the last pixel inside is one before the far edge."""
    width, height = size
    x0, y0, x1, y1 = box.x0 * width, box.y0 * height, box.x1 * width - 1, box.y1 * height - 1
    return x0, y0, max(x0, x1), max(y0, y1)


def _outline(
    pen: ImageDraw.ImageDraw, edge: Rectangle, line_px: int, colour: tuple[int, ...], *, is_dashed: bool
) -> None:
    """A coloured rectangle, `line_px` wide inwards, between two black ones."""
    x0, y0, x1, y1 = edge
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=0)
    if min(x1 - x0, y1 - y0) > 4 * line_px:
        pen.rectangle((x0 + line_px, y0 + line_px, x1 - line_px, y1 - line_px), outline=0)
    if not is_dashed:
        pen.rectangle(edge, outline=colour, width=line_px)
        return
    for low, high, is_across in ((x0, x1, True), (y0, y1, False)):
        dash = (high - low) / max(1, 2 * round((high - low) / (12 * line_px)) + 1)  # odd: a dash at either corner
        for place in range(0, round((high - low) / dash) if dash else 1, 2):
            first, last = low + place * dash, low + (place + 1) * dash
            for side in (y0, y1 - line_px + 1) if is_across else (x0, x1 - line_px + 1):
                ends = (first, side, last, side) if is_across else (side, first, side, last)
                pen.rectangle((ends[0], ends[1], ends[2] + (not is_across) * (line_px - 1),
                               ends[3] + is_across * (line_px - 1)), fill=colour)  # fmt: skip


def _free_place(
    edge: Rectangle, text_wh: tuple[float, float], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Where words stand: the nearest place to the box, inside the picture, that no other words take."""
    x0, y0, x1, y1 = edge
    width, height = text_wh
    rows, columns = (y0 - height - 2, y1 + 2), (x0, x1 - width)
    best = [(x, y) for x in columns for y in rows] + [(x1 + 3, y0), (x0 - width - 3, y0), (x0 + 2, y0 + 2)]
    grid = itertools.product(
        range(0, max(1, int(size[0] - width)), max(1, int(width // 4))), range(0, size[1], int(height + 1))
    )
    rest = sorted(grid, key=lambda at: (at[0] + width / 2 - (x0 + x1) / 2) ** 2 + (at[1] - y0) ** 2)
    places = [_inside((x, y, x + width, y + height), size) for x, y in (*best, *rest)]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _inside(place: Rectangle, size: tuple[int, int]) -> Rectangle:
    """The same rectangle, moved into the picture; what is larger than the picture starts at its edge."""
    x0, y0, x1, y1 = place
    x = max(0.0, min(x0, size[0] - 1 - (x1 - x0)))
    y = max(0.0, min(y0, size[1] - 1 - (y1 - y0)))
    return x, y, x + x1 - x0, y + y1 - y0


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _lead(pen: ImageDraw.ImageDraw, place: Rectangle, edge: Rectangle, colour: tuple[int, ...]) -> None:
    """A line from words to their box where the two are apart."""
    near = [min(max(place[k], edge[k]), edge[k + 2]) for k in (0, 1)]
    start = [min(max(near[k], place[k]), place[k + 2]) for k in (0, 1)]
    if max(abs(near[0] - start[0]), abs(near[1] - start[1])) > 3:
        pen.line((*start, *near), fill=0, width=3)
        pen.line((*start, *near), fill=colour)
