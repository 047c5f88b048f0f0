"""Outlines of masks drawn on their image, one colour a class, with the names under it. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightbox.errors import RequestError

COLOURS = (
    *((86, 180, 233), (255, 176, 0), (0, 158, 115), (240, 228, 66)),
    *((213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255)),
)
"""Apart for every kind of colour vision (Okabe and Ito); with more classes they come again."""
ROW_PX = 16


@dataclass(frozen=True, slots=True)
class Outline:
    """A mask to draw, bool h w, and its class; masks of one class share a colour and a line of the legend."""

    label: str
    mask: np.ndarray


def draw_outlines(pixels: np.ndarray, outlines: Sequence[Outline], *, scale: int = 1) -> Image.Image:
    """Draw the edges of masks over an image, and name the classes in a strip under it.

    An edge is drawn on the mask's own outermost pixels, so that a region of one pixel shows and the pixels inside a
    larger one stay as they are.

    Args:
        pixels: uint8, h w or h w 3.
        outlines: masks of the image's size.
        scale: whole-number enlargement, nearest neighbour.

    Returns:
        RGB image of w * scale pixels, and h * scale with the strip below.

    Raises:
        RequestError: a mask of another size than the image.
    """
    picture = np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1)
    picture = np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture.copy()
    labels = list(dict.fromkeys(outline.label for outline in outlines))
    for outline in outlines:
        if outline.mask.shape != pixels.shape[:2]:
            raise RequestError(
                f"A mask of '{outline.label}' of {outline.mask.shape} for an image of {pixels.shape[:2]}",
                "A mask is drawn on the pixels that it is of",
                "Resize neither, or both alike",
            )
        large = np.repeat(np.repeat(outline.mask, scale, axis=0), scale, axis=1)
        picture[_edge(large)] = COLOURS[labels.index(outline.label) % len(COLOURS)]
    return _with_legend(Image.fromarray(picture), labels)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask that touch one outside of it, or the border of the image, by a side."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _with_legend(picture: Image.Image, labels: Sequence[str]) -> Image.Image:
    if not labels:
        return picture
    whole = Image.new("RGB", (picture.width, picture.height + ROW_PX * len(labels)))
    whole.paste(picture)
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(ROW_PX - 4)
    for row, label in enumerate(labels):
        top, colour = picture.height + row * ROW_PX, COLOURS[row % len(COLOURS)]
        pen.rectangle((3, top + 4, 11, top + 12), fill=colour)
        pen.text((16, top + 1), label, fill=(255, 255, 255), font=font)
    return whole
