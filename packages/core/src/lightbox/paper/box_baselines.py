"""Boxes that can be had without reading the name: location prior, largest blob, and the oracle. No torch.

The location prior knows the name and does not look; the largest blob looks and does not know the name. The oracle is no
rival but the upper end of a score: what a perfect answer gets under the same scoring.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightbox.eval.blobs import largest_blob, usual_image
from lightbox.eval.boxes import LabelledBox
from lightbox.paper import baselines
from lightbox.paper.samples import Split
from lightbox.readers.images import load_image
from lightbox.records import Finding

Boxes = list[list[LabelledBox]]
"""Boxes of each sample that is asked, in order."""


def location_prior(train: Split[Finding], asked: Split[Finding]) -> Boxes:
    """One box a sample, of `baselines.location_prior`: medians over the training boxes of the same finding."""
    boxes = baselines.location_prior(train.samples, asked.samples)
    return [[LabelledBox(s.record.name, box)] for s, box in zip(asked.samples, boxes, strict=True)]


def blob(train: Split[Finding], asked: Split[Finding], *, image_px: int = 64) -> Boxes:
    """One box a sample: the most conspicuous region of its image, looked for once an image.

    Args:
        train: its images make the usual one.
        asked: samples to answer.
        image_px: side of the squares to which images are resized, without margins, so that fractions stay as they are.
    """

    def square(image: np.ndarray | Path) -> np.ndarray:
        pixels = Image.fromarray(load_image(image))
        return np.asarray(pixels.resize((image_px, image_px), Image.Resampling.BILINEAR))

    usual = usual_image(square(image) for image in train.images)
    boxes = [largest_blob(square(image), usual) for image in asked.images]
    return [[LabelledBox(sample.record.name, boxes[sample.image])] for sample in asked.samples]


def oracle(train: Split[Finding], asked: Split[Finding]) -> Boxes:
    """The true boxes of each sample; none where the finding is absent."""
    return [[LabelledBox(s.record.name, box) for box in s.record.boxes] for s in asked.samples]


BY_METHOD: dict[str, Callable[..., Boxes]] = {"location_prior": location_prior, "blob": blob, "oracle": oracle}
