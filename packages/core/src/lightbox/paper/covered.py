"""Images of which a region is hidden, to try whether an answer rests on it. No torch."""

import numpy as np
from PIL import Image

from lightbox.paper.image_regions import to_px
from lightbox.records import Box

MARGIN = 0.25


def cover(image: Image.Image, box: Box) -> Image.Image:
    """A copy of an image with a box filled by the mean of what lies around it, a quarter of its sides wide."""
    pixels = np.array(image)
    x0, y0, x1, y1 = to_px(box, image.size)
    dx, dy = (max(1, round(MARGIN * side)) for side in (x1 - x0, y1 - y0))
    around = np.zeros(pixels.shape[:2], bool)
    around[max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx] = True
    around[y0:y1, x0:x1] = False
    pixels[y0:y1, x0:x1] = pixels[around].mean(axis=0).round().astype(pixels.dtype) if around.any() else 0
    return Image.fromarray(pixels)
