"""Example cards: one item, what was asked, what is right, and what each arm said. Images are embedded. No torch.

A picture is drawn as SVG: the image, and masks and boxes over it. What is true is green and solid, what an arm
predicted orange and dashed. An arm that marks regions has its pictures drawn beside what it said; others share the
card's.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from lightbox.claims.document import ShownExample
from lightbox.runs.examples import BoxMark, Lines, MaskMark, Picture, Step

MOST_CARDS, MOST_ARMS = 6, 10
LARGEST_IMAGE = 1_000_000
PNG = b"\x89PNG\r\n\x1a\n"
COLOURS = {"truth": "#009E73", "predicted": "#D55E00"}  # as in figures, told apart with any colour vision
MASK_ALPHA = 110  # of 255


@dataclass(frozen=True)
class Film:
    """A picture ready to draw, 100 wide.

    Args:
        image: id in `Gallery.images`; "" where the image was not kept.
        height: of the picture, where its width is 100.
        title: shown under it.
        boxes: in fractions of the picture.
        masks: ids in `Gallery.images`.
        alt: what it shows, for a reader who hears the page.
    """

    image: str
    height: float
    title: str
    boxes: tuple[BoxMark, ...]
    masks: tuple[str, ...]
    alt: str


@dataclass(frozen=True)
class Answer:
    """What one arm said of an item, what it marked, and the steps that led there."""

    arm: str
    is_right: bool | None
    score: float | None
    output: Lines
    films: tuple[Film, ...]
    trace: tuple[tuple[Step, Film | None], ...]


@dataclass(frozen=True)
class Card:
    """One item; `more` counts the arms that are left out."""

    paper: str
    item: str
    condition: str
    task: Lines
    films: tuple[Film, ...]
    answers: tuple[Answer, ...]
    more: int

    @property
    def is_marked(self) -> bool:
        """True where an arm has pictures of its own."""
        return any(answer.films for answer in self.answers)


@dataclass
class Gallery:
    """Cards, and their images by id as data addresses: each once, however many arms and items show it."""

    folder: Path
    cards: list[Card] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)

    @property
    def is_marked(self) -> bool:
        """True where a picture has a region marked on it."""
        return any(card.is_marked or any(film.boxes or film.masks for film in card.films) for card in self.cards)

    def _add(self, png: bytes) -> str:
        name = f"image-{hashlib.sha256(png).hexdigest()[:16]}"
        self.images[name] = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
        return name

    def card(self, shown: Sequence[ShownExample]) -> Card:
        """The card of one item, from the examples of its arms."""
        first = shown[0].example
        return Card(
            paper=shown[0].paper,
            item=first.item,
            condition=first.condition,
            task=first.task,
            films=self._films((_truth(picture) for picture in first.pictures), first.item),
            answers=tuple(self._answer(one) for one in shown[:MOST_ARMS]),
            more=max(0, len(shown) - MOST_ARMS),
        )

    def _answer(self, shown: ShownExample) -> Answer:
        one = shown.example
        marked = [picture for picture in one.pictures if picture != _truth(picture)]
        steps = [(step, self._film(step.picture, one.item) if step.picture is not None else None) for step in one.trace]
        return Answer(shown.arm, one.is_right, one.score, one.output, self._films(marked, one.item), tuple(steps))

    def _films(self, pictures: Iterable[Picture], item: str) -> tuple[Film, ...]:
        return tuple(self._film(picture, item) for picture in pictures)

    def _film(self, picture: Picture, item: str) -> Film:
        png = _read_png(self.folder / picture.path)
        width, height = (int.from_bytes(png[place : place + 4]) or 1 for place in (16, 20)) if png else (1, 1)
        marks = ", ".join(f"{mark.role} {mark.label or 'region'}" for mark in (*picture.boxes, *picture.masks))
        return Film(
            image=self._add(png) if png else "",
            height=round(100 * height / width, 2),
            title=picture.title,
            boxes=picture.boxes,
            masks=tuple(self._add(png) for mark in picture.masks if (png := _coloured(mark, self.folder))),
            alt=f"{picture.title or 'Image'} of item {item}" + (f" with {marks}" if marks else ""),
        )


def make_gallery(examples: Sequence[ShownExample], *, folder: Path) -> Gallery:
    """Group examples by item, those first on which the arms disagree; at most six a paper.

    Args:
        examples: of the document; paths of images are relative to `folder`.
        folder: where the document lies.
    """
    items: dict[tuple, list[ShownExample]] = {}
    for shown in examples:
        one = shown.example
        items.setdefault((shown.paper, shown.seed, one.item, one.condition, one.task), []).append(shown)
    ordered = sorted(items.values(), key=_disagreement, reverse=True)
    gallery = Gallery(folder)
    for paper in dict.fromkeys(shown.paper for shown in examples):
        own = [arms for arms in ordered if arms[0].paper == paper]
        gallery.cards += [gallery.card(arms) for arms in own[:MOST_CARDS]]
    return gallery


def _disagreement(shown: Sequence[ShownExample]) -> tuple[int, float]:
    """How many arms are in the minority, right or wrong; then how far their scores are apart."""
    verdicts = [one.example.is_right for one in shown]
    scores = [one.example.score for one in shown if one.example.score is not None]
    return min(verdicts.count(True), verdicts.count(False)), max(scores, default=0.0) - min(scores, default=0.0)


def _truth(picture: Picture) -> Picture:
    """The picture with what is true marked on it, and nothing that an arm predicted."""
    boxes = tuple(mark for mark in picture.boxes if mark.role == "truth")
    return replace(picture, boxes=boxes, masks=tuple(mark for mark in picture.masks if mark.role == "truth"))


def _read_png(path: Path) -> bytes:
    """Content of a PNG file; empty where it is absent, large, or not a PNG."""
    if not path.is_file() or path.stat().st_size > LARGEST_IMAGE:
        return b""
    content = path.read_bytes()
    return content if content.startswith(PNG) else b""


def _coloured(mark: MaskMark, folder: Path) -> bytes:
    """The mask as a translucent image in the colour of its role; empty where it cannot be read."""
    try:
        mask = Image.open(io.BytesIO(_read_png(folder / mark.path))).convert("L")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return b""
    layer = Image.new("RGB", mask.size, COLOURS[mark.role])
    layer.putalpha(mask.point(lambda value: MASK_ALPHA if value else 0))
    buffer = io.BytesIO()
    layer.save(buffer, format="PNG")
    return buffer.getvalue()
