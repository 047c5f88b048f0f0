"""A question about a picture, with regions in the question and masks in the answer, as a model is asked it. No torch.

A question says `<region></region>` for each of its regions, an answer `<SEG>` for each of its masks; the data of
MedPLIB are written so.
"""

import re
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.pixel_prompts import Prompt

SEG, REGION, REGION_END, REGION_FEATURE = "<SEG>", "<region>", "</region>", "<region_feature>"
TAGS = (SEG, REGION, REGION_END, REGION_FEATURE)
HERE = REGION + REGION_END
"""What a question says where it means a region."""


@dataclass(frozen=True)
class PixelItem:
    """A question about a picture.

    Args:
        image: uint8, h w or h w 3.
        question: with `<region></region>` for each region.
        regions: in the order of the question.
        answer: with `<SEG>` for each mask; None where it is to be found.
        masks: bool h w each, in the order of the answer.
    """

    image: np.ndarray
    question: str
    regions: tuple[Prompt, ...] = ()
    answer: str | None = None
    masks: tuple[np.ndarray, ...] = ()


def check_item(item: PixelItem, place: int = 0) -> None:
    """Refuse an item whose text and regions or masks do not belong together.

    Raises:
        RequestError: as `prepare`.
    """
    asked, answer = item.question.count(HERE), item.answer or ""
    loose = re.findall(rf"{REGION}|{REGION_END}|{REGION_FEATURE}", item.question.replace(HERE, "") + answer)
    if asked != len(item.regions) or loose:
        raise RequestError(
            f"Item {place} has {len(item.regions)} regions; its question says {HERE} {asked} times"
            + (f", and {loose[0]} elsewhere" if loose else ""),
            "Each region has its place in the question, in order, and answers have none",
            f"Write {HERE} once for each region",
        )
    if answer.count(SEG) != len(item.masks):
        raise RequestError(
            f"Item {place} has {len(item.masks)} masks; its answer says {SEG} {answer.count(SEG)} times",
            "Each mask has its place in the answer, in order",
            f"Write {SEG} once for each mask, and none for what is absent",
        )
    for mask in item.masks:
        if mask.dtype != bool or mask.shape != item.image.shape[:2]:
            raise RequestError(
                f"A mask of item {place} is {mask.dtype} of shape {mask.shape}",
                f"Its picture is {item.image.shape[0]} x {item.image.shape[1]}, and a pixel is inside or not",
                "Give a boolean mask of this picture, rows first, such as labels == 1",
            )
