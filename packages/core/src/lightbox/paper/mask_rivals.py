"""Masks that can be had without a model: mean mask, whole image, what is bright, and the upper end. No torch.

The mean mask knows the class and does not look; what is bright is looked at and does not know the class. The oracle is
no rival but the upper end of a score: what a perfect answer gets that is drawn on a grid of as many cells.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage

from lightbox.errors import RequestError
from lightbox.eval.masks import CANDIDATES, THRESHOLD
from lightbox.paper.mask_items import MaskItem
from lightbox.paper.mask_scores import as_logits

Masks = list[Bool[np.ndarray, "_ _"]]
"""Masks of each item that is asked, in order, each of the size of its image."""
SMOOTH = 0.01  # of the shorter side, as SD of a Gaussian: single noisy pixels are no object


def mean_mask(
    train: Sequence[MaskItem], asked: Sequence[MaskItem], *, side_px: int = 64, threshold: float | None = None
) -> Masks:
    """Where most training images show the class, the same for every image: the location prior of masks.

    Args:
        train: the masks of a class's present items are stretched to a square and averaged; for a class without any,
            those of all classes are.
        asked: items to answer.
        side_px: of the square.
        threshold: least mean that is drawn, in (0, 1); None takes, for each class, the one of `masks.CANDIDATES` with
            the highest mean Dice on its training masks, since the mean of masks that lie scattered never reaches 0.5.

    Raises:
        RequestError: no training mask.
    """
    by_name: dict[str, list[np.ndarray]] = defaultdict(list)
    for item in train:
        if item.is_present:
            by_name[item.name].append(squared(item.mask, side_px))
    every = [mask for masks in by_name.values() for mask in masks]
    if not every:
        raise RequestError(f"{len(train)} training items", "None of them shows its class", "Give items with a mask")
    drawn = {name: _drawn(by_name.get(name, every), threshold) for name in {item.name for item in asked}}
    return [unsquared(drawn[item.name], item.mask.shape) >= THRESHOLD for item in asked]


def whole_image(train: Sequence[MaskItem], asked: Sequence[MaskItem], *, side_px: int = 64) -> Masks:
    """Every pixel."""
    return [np.ones(item.mask.shape, dtype=bool) for item in asked]


def bright(train: Sequence[MaskItem], asked: Sequence[MaskItem], *, side_px: int = 64) -> Masks:
    """All pixels above Otsu's threshold of their own image."""
    by_case = {item.case_id: bright_pixels(item.image) for item in asked}
    return [by_case[item.case_id] for item in asked]


def bright_blob(train: Sequence[MaskItem], asked: Sequence[MaskItem], *, side_px: int = 64) -> Masks:
    """The largest region of such pixels that hangs together, by sides."""
    by_case = {item.case_id: _largest(bright_pixels(item.image)) for item in asked}
    return [by_case[item.case_id] for item in asked]


def oracle(train: Sequence[MaskItem], asked: Sequence[MaskItem], *, side_px: int = 64) -> Masks:
    """The true mask, through a grid of `side_px` cells a side and back."""
    return [unsquared(squared(item.mask, side_px), item.mask.shape) >= THRESHOLD for item in asked]


BY_METHOD: dict[str, Callable[..., Masks]] = {
    "mean_mask": mean_mask,
    "whole_image": whole_image,
    "bright": bright,
    "bright_blob": bright_blob,
    "oracle": oracle,
}


def drawer(method: str, train: Sequence[MaskItem]) -> Callable[[Sequence[MaskItem]], list[Float[np.ndarray, "_ _"]]]:
    """Gives a method's masks of the items that it is asked, as logits; `method` is a key of `BY_METHOD`."""
    return lambda asked: [as_logits(mask) for mask in BY_METHOD[method](train, asked)]


def mean_by_modality(train: Sequence[MaskItem], asked: Sequence[MaskItem]) -> dict[str, Float[np.ndarray, "_ _"]]:
    """Logits of the mean mask of each item's class in pictures of its modality, by the item's id; see `mean_mask`."""
    named = [[replace(item, name=f"{item.modality} {item.name}") for item in items] for items in (train, asked)]
    masks = mean_mask(*named) if asked else []
    return {item.id: as_logits(mask) for item, mask in zip(asked, masks, strict=True)}


def squared(mask: Bool[np.ndarray, "h w"], side_px: int) -> Float[np.ndarray, "s s"]:
    """The share of each cell of a square that a mask, stretched over it, covers, float32 in [0, 1]."""
    size = (side_px, side_px)
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))


def unsquared(values: Float[np.ndarray, "s s"], image_hw: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    """Values over a square at the pixels of an image that was stretched over it, bilinear, float32."""
    height, width = image_hw
    values = np.asarray(values, dtype=np.float32)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def bright_pixels(image: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Pixels above Otsu's threshold (1979) of an image, once it is grey and smooth; none of a constant one.

    The threshold is the grey level that leaves the least variance within what is above and what is not.

    Args:
        image: uint8, h w or h w 3.
    """
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float64)
    grey = np.rint(ndimage.gaussian_filter(grey, SMOOTH * min(grey.shape))).astype(np.int64)
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    n_below, sum_below = counts.cumsum(), (counts * np.arange(256)).cumsum()
    n_above = n_below[-1] - n_below
    apart = sum_below / np.maximum(n_below, 1) - (sum_below[-1] - sum_below) / np.maximum(n_above, 1)
    return grey > (n_below * n_above * apart**2).argmax() if grey.min() < grey.max() else np.zeros(grey.shape, bool)


def _drawn(masks: Sequence[np.ndarray], threshold: float | None) -> np.ndarray:
    """Cells of the mean of squared masks that are drawn, 0 or 1, float32."""
    mean = np.mean(masks, axis=0)

    def dice(least: float) -> float:
        drawn = mean >= least
        # a cell is drawn whole and covered in part, so these are areas and not counts
        return float(np.mean([2 * mask[drawn].sum() / (drawn.sum() + mask.sum()) for mask in masks]))

    least = max(CANDIDATES, key=dice) if threshold is None else threshold
    return (mean >= least).astype(np.float32)


def _largest(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    regions = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=regions)
    sizes = np.bincount(regions.ravel())[1:]
    return regions == sizes.argmax() + 1 if len(sizes) else mask
