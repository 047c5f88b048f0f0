"""Every modality by name: what draws it, what it can show, whether it may train; and the door to all of them.

A case depends on its modality, its seed and the knobs alone: each modality draws from a sub-stream of the seed that has
the modality's own number, so that adding one changes none of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError
from lightbox.phantom import ct, dermoscopy, endoscopy, fundus, microscopy, mr, pet, radiograph, ultrasound
from lightbox.phantom.canvas import Frame, PictureKnobs, Sketch, Stream, frame_of
from lightbox.phantom.splits import seed_range
from lightbox.records import Case

VERSION = "modalities-1"
"""Of every picture and mask drawn here: a change of a single pixel must change it."""


@dataclass(frozen=True)
class Modality:
    """How one kind of picture is made.

    Args:
        number: of its sub-stream of a case's seed; never used twice. Radiographs have that of the chest world, 0.
        draw: from draws, frame and knobs to a picture with what lies in it.
        eighths: height and width of its frame in eighths of the longer side.
        classes: names of the anatomy and the findings that it can show.
        is_colour: pictures are (h, w, 3) instead of (h, w).
        body_part: for the record.
    """

    number: int
    draw: Callable[[Stream, Frame, PictureKnobs], Sketch]
    eighths: tuple[int, int]
    classes: tuple[str, ...]
    is_colour: bool
    body_part: str


MODALITIES = {
    "radiograph": Modality(0, radiograph.draw_radiograph, radiograph.EIGHTHS, radiograph.CLASSES, False, "chest"),
    "ultrasound": Modality(1, ultrasound.draw_ultrasound, ultrasound.EIGHTHS, ultrasound.CLASSES, False, "abdomen"),
    "fundus": Modality(2, fundus.draw_fundus, fundus.EIGHTHS, fundus.CLASSES, True, "eye"),
    "endoscopy": Modality(3, endoscopy.draw_endoscopy, endoscopy.EIGHTHS, endoscopy.CLASSES, True, "gut"),
    "dermoscopy": Modality(4, dermoscopy.draw_dermoscopy, dermoscopy.EIGHTHS, dermoscopy.CLASSES, True, "skin"),
    "ct": Modality(5, ct.draw_ct, ct.EIGHTHS, ct.CLASSES, False, "abdomen"),
    "mr": Modality(6, mr.draw_mr, mr.EIGHTHS, mr.CLASSES, False, "abdomen"),
    "pet": Modality(7, pet.draw_pet, pet.EIGHTHS, pet.CLASSES, False, "whole body"),
    "microscopy": Modality(8, microscopy.draw_microscopy, microscopy.EIGHTHS, microscopy.CLASSES, True, "blood"),
}
HELD_OUT = ("ultrasound", "fundus", "endoscopy", "mr")
"""Never trained or validated on: grounding is tested on them zero-shot, as the paper tests it on these four."""
TRAINED = tuple(name for name in MODALITIES if name not in HELD_OUT)
"""CT, PET and dermoscopy as in the paper; and radiographs, which the shipped towers have seen; and blood smears."""
EVALUATION_SPLITS = ("test", "test_shifted", "development")
"""The only splits of which a held-out modality is drawn."""


def draw_modality(
    name: str, split: str, *, n: int, seed: int = 0, start: int = 0, knobs: PictureKnobs | None = None
) -> list[Case]:
    """Draw labelled cases of one modality.

    Args:
        name: one of `MODALITIES`.
        split: one of `splits.SPLITS`; of a held-out modality one of `EVALUATION_SPLITS`.
        n: number of cases.
        seed: run seed, 0..999.
        start: cases of the run to pass over, for drawing in parts.
        knobs: None means the default.

    Returns:
        One `Case` a seed, `images[0]` uint8 (h, w) or (h, w, 3); findings are anatomy and findings alike, each with its
        box and its mask bool (h, w). An organ's mask includes the lesions in it.

    Raises:
        RequestError: unknown modality or split, a held-out modality of a split that trains, or seed or n out of range.
    """
    if name not in MODALITIES:
        raise RequestError(
            f"modality='{name}'", "The phantom has no such modality", f"Use one of {', '.join(MODALITIES)}"
        )
    seeds = seed_range(split, seed, start + n)[start:]
    if name in HELD_OUT and split not in EVALUATION_SPLITS:
        raise RequestError(
            f"modality='{name}' with split='{split}'",
            "It is held out: zero-shot grounding would be no longer zero-shot",
            f"Use one of the modalities {', '.join(TRAINED)}, or one of the splits {', '.join(EVALUATION_SPLITS)}",
        )
    return [draw_case(name, case_seed, knobs or PictureKnobs(), split=split) for case_seed in seeds]


def draw_case(name: str, case_seed: int, knobs: PictureKnobs, *, split: str = "") -> Case:
    """One case of a known modality from its case seed; `draw_modality` is the door that guards what is held out."""
    modality = MODALITIES[name]
    frame = frame_of(knobs.image_px, modality.eighths)
    # colour noise is a byte a channel; one by one, because a batch of many small objects cannot be drawn together
    stream = Stream(
        case_seed, modality.number, n_noise=frame.shape[0] * frame.shape[1] * (3 if modality.is_colour else 1)
    )
    sketch = modality.draw(stream, frame, knobs)
    case_id = f"{name}-{case_seed}"
    return Case(
        id=case_id,
        images=(sketch.image.astype(np.uint8),),
        patient_id=case_id,
        modality=f"phantom {name}",  # the record says what the picture is, as the strip over a rendered one does
        body_part=modality.body_part,
        findings=tuple(sketch.findings),
        licence="Apache-2.0",
        split=split,
    )


def shared_classes(name: str) -> tuple[str, ...]:
    """Classes of a held-out modality that a trained one shows too: words that grounding has met, in another look.

    Example:
        >>> shared_classes("fundus")
        ('vessel', 'haemorrhage')
    """
    known = {word for other in TRAINED for word in MODALITIES[other].classes}
    return tuple(word for word in MODALITIES[name].classes if word in known)
