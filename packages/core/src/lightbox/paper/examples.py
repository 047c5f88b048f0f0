"""A few scored samples to look at: `examples.json` and one PNG each, synthetic images marked as such. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lightbox.paper.samples import Sample, Split
from lightbox.readers.images import load_image
from lightbox.runs import folders
from lightbox.runs.examples import Example, Picture

N_EXAMPLES = 6
SHOWN_PX = 256


@dataclass(frozen=True)
class Shown:
    """A sample with what was generated for it."""

    sample: Sample[Any]
    answer: str
    rationale: str
    is_right: bool


def write_examples(folder: Path, shown: Sequence[Shown], split: Split[Any], *, is_synthetic: bool) -> None:
    """Write the first `N_EXAMPLES` samples, at most one an image, and their PNGs."""
    (folder / folders.EXAMPLE_IMAGES).mkdir(exist_ok=True)
    chosen = list({one.sample.image: one for one in reversed(shown)}.values())[::-1][:N_EXAMPLES]
    rows = []
    for one in chosen:
        question = one.sample.record
        place = f"{folders.EXAMPLE_IMAGES}/{_file_name(one.sample.id)}.png"
        draw_example(split.images[one.sample.image], is_synthetic=is_synthetic).save(folder / place)
        task = {"question": question.text, "options": " | ".join(question.options), "gold answer": question.answer}
        task |= {"gold rationale": question.rationale}
        output = {"answer": one.answer, "rationale": one.rationale}
        example = Example(
            one.sample.id,
            (Picture(place),),
            tuple((label, text) for label, text in task.items() if text),
            tuple((label, text) for label, text in output.items() if text),
            is_right=one.is_right,
        )
        rows.append(example.to_row())
    folders.write_examples(folder, rows)


def draw_example(image: np.ndarray | Path, *, is_synthetic: bool, in_colour: bool = False) -> Image.Image:
    """The image as a square of `SHOWN_PX`, grey unless asked otherwise, letterboxed, marked where it is synthetic."""
    picture = Image.fromarray(load_image(image, image_px=SHOWN_PX, in_colour=in_colour))
    if is_synthetic:
        ImageDraw.Draw(picture).text((4, SHOWN_PX - 14), "synthetic image", fill="white")
    return picture


def _file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)
