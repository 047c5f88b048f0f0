"""Images with a box and a mask each, as one batch; Dice of masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.metrics import compute_dice
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.records import Box, check_box


@dataclass(frozen=True)
class MaskBatch:
    """Images with one box each, and the masks to learn.

    Args:
        pixel_values: b 3 h w, as the model reads them.
        boxes_xyxy_px: b 1 4, in pixels of `pixel_values`.
        seen_hw: rows and columns of each image inside `pixel_values`, without filling.
        image_hw: rows and columns of each image as it was given.
        masks: True inside, h w of each image; None for prediction.
    """

    pixel_values: Float[Tensor, "b 3 h w"]
    boxes_xyxy_px: Float[Tensor, "b 1 4"]
    seen_hw: list[tuple[int, int]]
    image_hw: list[tuple[int, int]]
    masks: list[Bool[Tensor, "h w"]] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on a device."""
        masks = None if self.masks is None else [mask.to(device, non_blocking=non_blocking) for mask in self.masks]
        return replace(
            self,
            pixel_values=self.pixel_values.to(device, non_blocking=non_blocking),
            boxes_xyxy_px=self.boxes_xyxy_px.to(device, non_blocking=non_blocking),
            masks=masks,
        )


def dice_scores(found: Sequence[Bool[Tensor, "h w"]], truth: Sequence[Bool[Tensor, "h w"]]) -> list[float]:
    """Dice of each pair of masks, in [0, 1]: 1 where both are empty, 0 where one is."""
    pairs = zip(found, truth, strict=True)
    return [
        float(compute_dice(one[None, None].float(), other[None, None].float(), ignore_empty=False))
        for one, other in pairs
    ]


def checked_boxes(boxes: Sequence[Sequence[float]]) -> list[Box]:
    """Boxes as fractions, or RequestError with the place of the first that is none."""
    return [check_box(Box(*map(float, box)), where=f"box {index}") for index, box in enumerate(boxes)]


def mask_tensors(masks: Sequence[np.ndarray], image_hw: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Masks as boolean tensors, or RequestError where one has not the size of its image."""
    for index, (mask, size) in enumerate(zip(masks, image_hw, strict=True)):
        if mask.shape != size:
            raise RequestError(
                f"Mask {index} has shape {mask.shape}, its image {size}",
                "A mask says of each pixel of its image whether it is inside",
                "Give masks of the size of their images",
            )
    return [torch.from_numpy(np.ascontiguousarray(mask, dtype=bool)) for mask in masks]
