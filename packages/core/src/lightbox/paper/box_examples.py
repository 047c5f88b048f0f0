"""A few scored samples with their boxes to look at: `examples.json` and one PNG each. No torch.

True boxes are dashed, drawn ones carry their confidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightbox.eval.boxes import LabelledBox
from lightbox.paper.overlay import Mark, draw_boxes
from lightbox.paper.samples import Sample, Split
from lightbox.readers.images import load_image
from lightbox.runs import folders
from lightbox.runs.examples import Example, Picture

N_EXAMPLES, SHOWN_PX = 8, 256


@dataclass(frozen=True)
class Shown:
    """A sample of a finding with what was drawn for it, as fractions of the square that its image is shown in.

    `told` is what was asked, by label; `overlap` is in [0, 1], None where the finding is absent.
    """

    sample: Sample[Any]
    told: Mapping[str, str]
    drawn: Sequence[LabelledBox]
    overlap: float | None
    is_right: bool


def write_examples(folder: Path, shown: Sequence[Shown], split: Split[Any]) -> None:
    """Write the first `N_EXAMPLES` samples, at most one an image, and their PNGs."""
    (folder / folders.EXAMPLE_IMAGES).mkdir(exist_ok=True)
    of_image: dict[int, Shown] = {}
    for one in shown:
        of_image.setdefault(one.sample.image, one)
    rows = []
    for row, one in list(of_image.items())[:N_EXAMPLES]:
        marks = [Mark("", box, is_true=True) for box in one.sample.record.boxes]
        marks += [Mark("", box.box, box.score) for box in one.drawn]
        name = f"{folders.EXAMPLE_IMAGES}/{row}.png"
        draw_boxes(load_image(split.images[row], image_px=SHOWN_PX), marks).save(folder / name)
        said = {"boxes": str(len(one.drawn)), "overlap": "" if one.overlap is None else f"{one.overlap:.2f}"}
        example = Example(
            one.sample.id,
            (Picture(name),),
            tuple((label, text) for label, text in one.told.items() if text),
            tuple((label, text) for label, text in said.items() if text),
            is_right=one.is_right,
        )
        rows.append(example.to_row())
    folders.write_examples(folder, rows)
