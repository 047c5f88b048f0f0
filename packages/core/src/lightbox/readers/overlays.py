"""A case as a picture: pixels enlarged, boxes drawn and named, a strip beneath that says what it is."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightbox.records import Box

COLOURS = ((255, 176, 0), (100, 143, 255), (220, 38, 127), (254, 97, 0), (120, 94, 240))
MARGIN_PX = 4


def overlay(pixels: np.ndarray, boxes: Sequence[tuple[str, Box]], *, strip: str, scale: int = 1) -> Image.Image:
    """Draw named boxes over an image and a strip of text under it.

    Args:
        pixels: uint8, h w.
        boxes: (name, box) pairs.
        strip: one line of text; the picture is widened where the line needs it.
        scale: whole-number enlargement, nearest neighbour, so that every source pixel stays a visible square.

    Returns:
        RGB image, at least w * scale wide and higher than h * scale.
    """
    # not resampled: a pixel that a model saw stays visible as one
    enlarged = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = enlarged.shape
    font = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(strip)
    strip_height = int(bottom - top) + 2 * MARGIN_PX
    canvas = Image.new("RGB", (max(width, int(right - left) + 2 * MARGIN_PX), height + strip_height))
    canvas.paste(Image.fromarray(enlarged), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for place, (name, box) in enumerate(boxes):
        colour = COLOURS[place % len(COLOURS)]
        corner = (box.x0 * width, box.y0 * height)
        # half-open boxes: the last pixel inside is one before the far edge
        far = (max(corner[0], box.x1 * width - 1), max(corner[1], box.y1 * height - 1))
        draw.rectangle((*corner, *far), outline=colour)
        draw.text((corner[0] + 2, max(0, corner[1] - 12)), name, fill=colour, font=font, stroke_width=1, stroke_fill=0)
    draw.text((MARGIN_PX, height + MARGIN_PX - top), strip, fill=(255, 255, 255), font=font)
    return canvas
