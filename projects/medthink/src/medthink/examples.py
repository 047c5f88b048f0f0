"""A few answered items to look at: `examples.json` and one PNG each, synthetic images marked as such in the image."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lightbox.files import write_json
from lightbox.readers.images import load_image
from medthink.config import N_EXAMPLES
from medthink.items import Item, Split

SHOWN_PX = 256


@dataclasses.dataclass(frozen=True)
class Answered:
    """An item with what was generated for it."""

    item: Item
    answer: str
    rationale: str
    is_correct: bool


def write_examples(folder: Path, answered: Sequence[Answered], split: Split, *, is_synthetic: bool) -> None:
    """Write the first `N_EXAMPLES` answered items under condition "image", at most one an image, and their PNGs."""
    (folder / "examples").mkdir(exist_ok=True)
    chosen = list({one.item.image: one for one in reversed(answered)}.values())[::-1][:N_EXAMPLES]
    rows = []
    for one in chosen:
        place = f"examples/{_file_name(one.item.id)}.png"
        draw_example(split.images[one.item.image], is_synthetic=is_synthetic).save(folder / place)
        rows.append(
            {
                "item": one.item.id,
                "question": one.item.question,
                "options": list(one.item.options),
                "gold_answer": one.item.answer,
                "answer": one.answer,
                "gold_rationale": one.item.rationale,
                "rationale": one.rationale,
                "correct": one.is_correct,
                "image": place,
                "condition": "image",
            }
        )
    write_json(folder / "examples.json", rows)


def draw_example(image: np.ndarray | Path, *, is_synthetic: bool) -> Image.Image:
    """The image as a grey square of `SHOWN_PX`, letterboxed, marked where it is synthetic."""
    picture = Image.fromarray(load_image(image, image_px=SHOWN_PX))
    if is_synthetic:
        ImageDraw.Draw(picture).text((4, SHOWN_PX - 14), "synthetic image", fill=255)
    return picture


def _file_name(item: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in item)
