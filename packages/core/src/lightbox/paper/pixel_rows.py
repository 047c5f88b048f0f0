"""Questions about pictures with regions and masks -> one batch: rows of ids, pictures, regions as weights over patches.

A question says `<region></region>` for each of its regions, an answer `<SEG>` for each of its masks; the official data
are written so. A placeholder is put between the two tags, and the model writes the region's features there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor

from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import UNLIMITED, VlmBatch
from lightbox.errors import RequestError
from lightbox.paper.image_frames import Frame, Size, letterboxed, stretched
from lightbox.paper.pixel_items import HERE, REGION, REGION_END, REGION_FEATURE, TAGS, PixelItem, check_item
from lightbox.paper.pixel_prompts import mask_of, region_weights
from lightbox.readers.images import letterbox

SQUARE, WHOLE = ("llava",), ("qwen2_vl", "qwen2_5_vl")
"""Families whose tower sees a square, in which a picture of any aspect is put; and those that see it as it is."""


@dataclass(frozen=True)
class PixelBatch:
    """What a `PixelVLM` sees.

    Args:
        rows: ids and labels, without the pixels.
        pixels: what the tower reads.
        pictures: as they came, for the segmenter.
        weights: of each row's regions over the patches of its picture.
        masks: true masks, row after row, each at the size of its picture.
    """

    rows: VlmBatch
    pixels: dict[str, Tensor]
    pictures: list[Image.Image]
    weights: list[Float[np.ndarray, "n gh gw"]]
    masks: list[Bool[Tensor, "h w"]]

    def __len__(self) -> int:
        return len(self.pictures)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on a device; pictures and weights stay."""
        return replace(
            self,
            rows=self.rows.to(device, non_blocking=non_blocking),
            pixels={name: value.to(device, non_blocking=non_blocking) for name, value in self.pixels.items()},
            masks=[mask.to(device, non_blocking=non_blocking) for mask in self.masks],
        )


def add_tags(backbone: Backbone) -> dict[str, int]:
    """Give each tag that the backbone lacks a token; a row begins as the mean of what it was spelled with.

    They are no special tokens, so that an answer without its special tokens still says `<SEG>`.

    Returns:
        Id of every tag.
    """
    vocabulary = backbone.tokenizer.get_vocab()
    missing = [AddedToken(tag, normalized=False, special=False) for tag in TAGS if tag not in vocabulary]
    if missing:
        add_tokens(backbone.core, backbone.tokenizer, missing)
    return tag_ids(backbone)


def tag_ids(backbone: Backbone) -> dict[str, int]:
    """Id of every tag.

    Raises:
        RequestError: a tag that is no token of the backbone.
    """
    vocabulary = backbone.tokenizer.get_vocab()
    missing = [tag for tag in TAGS if tag not in vocabulary]
    if missing:
        raise RequestError(
            f"The tokenizer of '{backbone.name}' lacks {', '.join(missing)}",
            "Masks and regions are asked for by tokens of their own",
            "Call add_tags before adapters are added",
        )
    return {tag: vocabulary[tag] for tag in TAGS}


def frame_in(backbone: Backbone, image_hw: Size) -> Frame:
    """Where a picture lies in what the backbone's tower sees.

    Raises:
        RequestError: a family that cuts pictures into tiles, or has no tower.
    """
    if backbone.family.name in SQUARE:
        return letterboxed(image_hw, backbone.core.config.vision_config.image_size)
    if backbone.family.name in WHOLE:
        return stretched(image_hw, image_hw)
    raise RequestError(
        f"Regions for '{backbone.name}', a {backbone.family.name}",
        "It is not known here which patch shows which part of a picture",
        f"Use one of {', '.join((*SQUARE, *WHOLE))}",
    )


def shown(backbone: Backbone, image: np.ndarray) -> Image.Image:
    """What the backbone's processor gets of a picture: all of it, in a black square where the tower sees a square.

    A processor of CLIP would cut the longer side.
    """
    frame = frame_in(backbone, image.shape[:2])
    return Image.fromarray(letterbox(image, frame.canvas_hw[0]) if backbone.family.name in SQUARE else image)


def prepare(
    backbone: Backbone, items: Sequence[PixelItem], *, max_tokens: int = UNLIMITED, padding: str = "right"
) -> PixelBatch:
    """Turn items into a batch on the CPU.

    Args:
        backbone: with the tags in its tokenizer.
        items: all answered, for a loss, or all to be answered.
        max_tokens, padding: see `Backbone.prepare`.

    Raises:
        RequestError: regions and tags of a question that differ in number, masks and `<SEG>` likewise, a mask of
            another size or kind, a region that means nothing, and as `Backbone.prepare`.
    """
    for place, item in enumerate(items):
        check_item(item, place)
    shown_pictures = [shown(backbone, item.image) for item in items]
    answers = [item.answer for item in items if item.answer is not None]
    if answers and len(answers) < len(items):
        raise RequestError(
            f"{len(items)} items, {len(answers)} of them answered",
            "A batch is read for a loss or answered as a whole",
            "Batch them apart",
        )
    questions = [item.question.replace(HERE, REGION + REGION_FEATURE + REGION_END) for item in items]
    rows = backbone.prepare(shown_pictures, questions, answers or None, max_tokens=max_tokens, padding=padding)
    pixels = {name: rows.inputs[name] for name in backbone.IMAGE_FIELDS}
    text = {name: value for name, value in rows.inputs.items() if name not in pixels}
    weights = []
    for item, grid in zip(items, backbone.grids(pixels), strict=True):
        image_hw = item.image.shape[:2]
        regions = [mask_of(region, image_hw) for region in item.regions]
        weights.append(region_weights(regions, frame_in(backbone, image_hw), grid))
    return PixelBatch(
        replace(rows, inputs=text),
        pixels,
        [Image.fromarray(item.image) for item in items],
        weights,
        [torch.from_numpy(mask) for item in items for mask in item.masks],
    )
