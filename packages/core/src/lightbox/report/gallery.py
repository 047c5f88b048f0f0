"""Example cards: one item, what was asked, what is right, and what each arm said. Images are embedded. No torch.

A picture is drawn as SVG: the image, and masks and boxes over it. What is true is green and solid, what an arm
predicted orange and dashed. An arm that marks regions has its pictures drawn beside what it said; others share the
card's.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lightbox.claims.document import ShownExample
from lightbox.runs.examples import Example, MaskMark, Picture

MOST_CARDS, MOST_ARMS = 6, 10
LARGEST_IMAGE = 1_000_000
PNG = b"\x89PNG\r\n\x1a\n"
COLOURS = {"truth": "#009E73", "predicted": "#D55E00"}  # as in figures, told apart with any colour vision
MASK_ALPHA = 110  # of 255


class Card(NamedTuple):
    """One item as its arms have it; `more` counts the arms that are left out."""

    arms: list[ShownExample]
    more: int


class Gallery:
    """Cards of examples, items first on which the arms disagree; at most six a paper.

    The template draws them and asks here for images; `images` then holds each as a data address, by id and once,
    however many arms and items show it.

    Args:
        examples: of the document; paths of images are relative to `folder`.
        folder: where the document lies.
    """

    def __init__(self, examples: Sequence[ShownExample], *, folder: Path) -> None:
        self.images: dict[str, str] = {}
        self.is_marked = any(picture.boxes or picture.masks for one in examples for picture in one.example.pictures)
        self._folder = folder
        items: dict[tuple, list[ShownExample]] = {}
        for shown in examples:
            one = shown.example
            items.setdefault((shown.paper, shown.seed, one.item, one.condition, one.task), []).append(shown)
        ordered = sorted(items.values(), key=_disagreement, reverse=True)
        self.cards: list[Card] = []
        for paper in dict.fromkeys(shown.paper for shown in examples):
            own = [arms for arms in ordered if arms[0].paper == paper]
            self.cards += [Card(arms[:MOST_ARMS], max(0, len(arms) - MOST_ARMS)) for arms in own[:MOST_CARDS]]

    def image(self, path: str) -> tuple[str, float]:
        """Id of an image, "" where it was not kept, and its height where it is 100 wide."""
        png = _read_png(self._folder / path)
        width, height = (int.from_bytes(png[place : place + 4]) or 1 for place in (16, 20)) if png else (1, 1)
        return self._add(png), round(100 * height / width, 2)

    def mask(self, mark: MaskMark) -> str:
        """Id of a mask as a translucent image in the colour of its role; "" where it cannot be read."""
        try:
            mask = Image.open(io.BytesIO(_read_png(self._folder / mark.path))).convert("L")
        except (OSError, SyntaxError, Image.DecompressionBombError):
            return ""
        layer = Image.new("RGB", mask.size, COLOURS[mark.role])
        layer.putalpha(mask.point(lambda value: MASK_ALPHA if value else 0))
        buffer = io.BytesIO()
        layer.save(buffer, format="PNG")
        return self._add(buffer.getvalue())

    def _add(self, png: bytes) -> str:
        if not png:
            return ""
        name = f"image-{hashlib.sha256(png).hexdigest()[:16]}"
        self.images[name] = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
        return name


def shared_pictures(example: Example) -> list[Picture]:
    """The pictures with what is true marked on them, and nothing that an arm predicted."""
    return [
        replace(
            picture,
            boxes=tuple(mark for mark in picture.boxes if mark.role == "truth"),
            masks=tuple(mark for mark in picture.masks if mark.role == "truth"),
        )
        for picture in example.pictures
    ]


def own_pictures(example: Example) -> list[Picture]:
    """The pictures on which the arm predicted something."""
    return [own for own, shared in zip(example.pictures, shared_pictures(example), strict=True) if own != shared]


def _disagreement(shown: Sequence[ShownExample]) -> tuple[int, float]:
    """How many arms are in the minority, right or wrong; then how far their scores are apart."""
    verdicts = [one.example.is_right for one in shown]
    scores = [one.example.score for one in shown if one.example.score is not None]
    return min(verdicts.count(True), verdicts.count(False)), max(scores, default=0.0) - min(scores, default=0.0)


def _read_png(path: Path) -> bytes:
    """Content of a PNG file; empty where it is absent, large, or not a PNG."""
    if not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
        return b""
    content = path.read_bytes()
    return content if content.startswith(PNG) else b""
