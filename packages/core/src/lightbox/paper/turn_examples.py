"""A few scored conversations to look at: `examples.json`, the image with its boxes, and each turn with what it showed.

No torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lightbox.paper.examples import draw_example
from lightbox.records import Box
from lightbox.runs import folders
from lightbox.runs.examples import BoxMark, Example, Picture, Step


@dataclass(frozen=True)
class Spoken:
    """A conversation about an image.

    Args:
        item: id in the scores.
        image: the original.
        true_boxes, written_boxes: as fractions of it.
        turns: what the model said, and the image that it was shown for it; None where it was shown none.
        task, output: what was asked and what came of it, by label.
        is_right: whether the answer is.
    """

    item: str
    image: Image.Image
    true_boxes: Sequence[Box]
    written_boxes: Sequence[Box]
    turns: Sequence[tuple[str, Image.Image | None]]
    task: Mapping[str, str]
    output: Mapping[str, str]
    is_right: bool


def some_of_each(kinds: Sequence[str], spoken: Sequence[Spoken], n: int = 2) -> list[Spoken]:
    """The first `n` of each kind, whatever came of them, so that all arms show the same items."""
    by_kind: dict[str, list[Spoken]] = {}
    for kind, one in zip(kinds, spoken, strict=True):
        by_kind.setdefault(kind, []).append(one)
    return [one for own in by_kind.values() for one in own[:n]]


def write_examples(folder: Path, spoken: Sequence[Spoken], *, is_synthetic: bool) -> None:
    """Write them, an original's PNG and one for each image that a turn showed."""
    place = folder / folders.EXAMPLE_IMAGES
    place.mkdir(exist_ok=True)

    def drawn(image: Image.Image, name: str) -> str:
        picture = draw_example(np.asarray(image), is_synthetic=is_synthetic, in_colour=image.mode == "RGB")
        picture.save(place / name)
        return f"{folders.EXAMPLE_IMAGES}/{name}"

    rows = []
    for number, one in enumerate(spoken):
        marks = [BoxMark(box, "truth") for box in one.true_boxes]
        marks += [BoxMark(box, "predicted") for box in one.written_boxes]
        steps = [
            Step(text, None if image is None else Picture(drawn(image, f"{number}-turn{turn}.png")))
            for turn, (text, image) in enumerate(one.turns, start=1)
        ]
        example = Example(
            one.item,
            (Picture(drawn(one.image, f"{number}.png"), boxes=tuple(marks)),),
            tuple((label, text) for label, text in one.task.items() if text),
            tuple((label, text) for label, text in one.output.items() if text),
            trace=tuple(steps),
            is_right=one.is_right,
        )
        rows.append(example.to_row())
    folders.write_examples(folder, rows)
