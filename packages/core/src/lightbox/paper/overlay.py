"""The image of a prediction with its boxes drawn and what was said written under it. No torch."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lightbox.errors import RequestError
from lightbox.readers.images import load_image
from lightbox.records import Box

SIDE_PX = 384
LINE_PX = 14
LETTERS = 60


def draw_prediction(image: Path, question: str, prediction: Mapping[str, Any], *, out: Path) -> None:
    """Write a PNG with the image above, its boxes on it, and the question and each text of the prediction below.

    Args:
        image: file.
        question: as asked.
        prediction: what a paper's `predict` returned; "boxes" are drawn, other texts are written with their names.
        out: the PNG.

    Raises:
        RequestError: where `out` does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise RequestError(f"--out is '{out}'", "The picture is written as PNG", "Name a file that ends in .png")
    texts = {name: value for name, value in prediction.items() if isinstance(value, str)}
    said = [f"question: {question}", *(f"{name}: {value or '-'}" for name, value in texts.items())]
    lines = [line for text in said for line in textwrap.wrap(text, LETTERS)]
    page = Image.new("L", (SIDE_PX, SIDE_PX + LINE_PX * (len(lines) + 1)), 0)
    page.paste(Image.fromarray(load_image(image, image_px=SIDE_PX)), (0, 0))
    pen = ImageDraw.Draw(page)
    for box in prediction.get("boxes", ()):
        pen.rectangle(_pixels(box), outline=255)
    for row, line in enumerate(lines):
        pen.text((6, SIDE_PX + 4 + LINE_PX * row), line, fill=255)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out)


def _pixels(box: Box | Sequence[float]) -> list[float]:
    """A half-open box of fractions as the corners of its outline."""
    x0, y0, x1, y1 = (side * SIDE_PX for side in box)
    return [x0, y0, x1 - 1, y1 - 1]
