"""The image of a prediction with question and answer written under it."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from lightbox.errors import RequestError
from lightbox.readers.images import load_image

SIDE_PX = 384
LINE_PX = 14
LETTERS = 60


def draw_answer(image: Path, question: str, answer: Mapping[str, object], *, out: Path) -> None:
    """Write a PNG with the image above and the question, answer, rationale and note below.

    Raises:
        RequestError: where `out` does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise RequestError(f"--out is '{out}'", "The picture is written as PNG", "Name a file that ends in .png")
    said = [f"Q: {question}", f"A: {answer['answer'] or 'not parsable'}", str(answer["rationale"]), str(answer["note"])]
    lines = [line for text in said for line in textwrap.wrap(text, LETTERS)]
    page = Image.new("L", (SIDE_PX, SIDE_PX + LINE_PX * (len(lines) + 1)), 0)
    page.paste(Image.fromarray(load_image(image, image_px=SIDE_PX)), (0, 0))
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        pen.text((6, SIDE_PX + 4 + LINE_PX * row), line, fill=255)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out)
