"""One image, one question, maybe a region: the answer and its masks. Research and teaching, not clinical use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.entries import PICTURES
from lightbox.paper.learner import asked_again
from lightbox.paper.mask_outlines import Outline, draw_outlines
from lightbox.paper.pixel_items import HERE, PixelItem
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.schema import from_plain
from lightbox.readers.images import load_image
from lightbox.records import Box, box_from_mask
from lightbox.runs import folders
from medplib.config import Config
from medplib.model import open_arm

SHOWN_PX = 256


def predict(
    image: Path, question: str, *, folder: Path, options: Sequence[str] = (), box: Any = None
) -> dict[str, object]:
    """Answer one question, about a region where a box is given, and draw the masks that the answer speaks of.

    Args:
        image: PNG, JPEG or DICOM file; the model is shown all of it.
        question: words that the model knows; `<region></region>` stands where the box is meant, and behind the first
            "the region" where it is left out.
        folder: of a finished run of `medplib train` that kept its model.
        options: not used; answers are written.
        box: `xyxy` fractions of the image.

    Returns:
        answer; boxes around its masks as `xyxy` fractions, and the words that each mask stands for; the masks, and the
        image with their outlines, as pictures.

    Raises:
        RequestError: a run that is not finished or kept no model, a box without a place in the question, or a place
            without a box.
    """
    cfg = from_plain(Config, folders.finished_run(folder).config)
    asked = asked_again(cfg, folder)
    model = open_arm(asked, find_pretrained(asked.model.backbone), {}).eval()
    pixels = load_image(image, in_colour=True)
    item = PixelItem(pixels, *placed(question, box))
    answer = model.answer([item], max_new_tokens=cfg.eval.answer_tokens)[0]
    masks = [(one.phrase or f"mask {place}", one.logits > 0) for place, one in enumerate(answer.masks, start=1)]
    outlines = [Outline(phrase, mask) for phrase, mask in masks]
    scale = max(1, SHOWN_PX // max(pixels.shape[:2]))
    pictures = {"outlines": draw_outlines(pixels, outlines, scale=scale)} if masks else {}
    pictures |= {
        f"mask {place}": Image.fromarray(mask.astype(np.uint8) * 255) for place, (_, mask) in enumerate(masks, start=1)
    }
    boxes = [box_from_mask(mask) for _, mask in masks]
    return {
        "answer": " ".join(answer.text.split()),
        "labels": [phrase for (phrase, _), own in zip(masks, boxes, strict=True) if own],
        "boxes": [tuple(round(side, 4) for side in own) for own in boxes if own],
        "empty masks": sum(own is None for own in boxes),
        "note": "research and teaching only, not for clinical use",
        PICTURES: pictures,
    }


def placed(question: str, box: Any) -> tuple[str, tuple[Box, ...]]:
    """A question with the place of its region, and the region.

    Raises:
        RequestError: see `predict`.

    Example:
        >>> placed("what is the region ?", (0, 0, 0.5, 1))[0]
        'what is the region <region></region> ?'
    """
    text = question
    if box is not None and HERE not in question:
        text = question.replace("the region", f"the region {HERE}", 1)
    if (box is not None) != (HERE in text):
        raise RequestError(
            f"The question is '{question}' and the box {box}",
            "A region has its place in the question, and each place its region",
            f'Write {HERE} where the region is meant, as in "what is the region {HERE} ?", and give one --box',
        )
    return text, (Box(*box),) if box is not None else ()
