"""Pictures of every modality that may train, with findings at three sizes: what a segmenter and a tower learn to see.

Held-out modalities are never drawn here; `draw_modality` would refuse them in a split that trains.
"""

from collections.abc import Iterator

from lightbox.phantom.canvas import PictureKnobs
from lightbox.phantom.modalities import MODALITIES, TRAINED, draw_modality
from lightbox.phantom.modalities import VERSION as PICTURES_VERSION
from lightbox.records import Case

IMAGE_PX = 64
"""Longer side of a picture, and side of the square that a model sees: nothing is resampled."""
SCALES_PCT = (100, 70, 140)
"""Sizes of findings, in percent of the default: an object must be known by its look and not by its size."""
SAW = f"pictures of {', '.join(TRAINED)} with findings of 70, 100 and 140 percent of the usual size"
MUST_NOT_SEE = (
    "the modalities ultrasound, fundus, endoscopy and mr, text beside a mask, regions as prompts of a question, "
    "validation and test seeds"
)
CLASSES = tuple(dict.fromkeys(word for name in TRAINED for word in MODALITIES[name].classes))
"""Every class that a trained modality shows; one that several show is one class."""


def trained_pictures(split: str, n: int, *, seed: int = 0) -> Iterator[tuple[str, Case]]:
    """Draw pictures, modality after modality and scale after scale.

    Args:
        split: of the phantom.
        n: pictures in all; a few less where it does not divide by modalities and scales.
        seed: run seed; each scale has its own case seeds.

    Yields:
        The modality's name, and the case.
    """
    share = n // (len(TRAINED) * len(SCALES_PCT))
    for name in TRAINED:
        for k, scale in enumerate(SCALES_PCT):
            knobs = PictureKnobs(image_px=IMAGE_PX, finding_scale_pct=scale)
            yield from ((name, case) for case in draw_modality(name, split, n=share, seed=seed + k, knobs=knobs))


__all__ = ["CLASSES", "IMAGE_PX", "MUST_NOT_SEE", "PICTURES_VERSION", "SAW", "SCALES_PCT", "trained_pictures"]
