"""Pixel prompts: a point, box, scribble, polygon or mask becomes one mask, and a mask the features under it. No torch.

The mask has the image's full size; what a region means to a model is the mean of the patch features that it covers,
each weighed by the share of the patch that is covered. So an object smaller than a patch keeps its say. (The official
code samples a mask shrunk to 24 x 24, where small objects vanish, at places shifted by up to a cell; its sampler of
regions, which comes from Ferret under another licence, is not used there or here.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from lightbox.errors import RequestError
from lightbox.paper.image_frames import Frame, Size
from lightbox.paper.image_regions import to_px
from lightbox.records import Box, check_box

if TYPE_CHECKING:
    from torch import Tensor

POINT_FRAC = 1 / 16
"""Width of a point and of a scribble's line, of the image's shorter side."""
Spot = tuple[float, float]
"""x and y as fractions of the image."""


@dataclass(frozen=True)
class Scribble:
    """A line drawn through spots; one spot is a point.

    Args:
        spots: at least one.
        width_frac: of the line, a fraction of the image's shorter side, > 0; the pixels of the spots count in any case.
    """

    spots: tuple[Spot, ...]
    width_frac: float = POINT_FRAC


@dataclass(frozen=True)
class Polygon:
    """Corners in order, at least three; inside is what the outline encloses an odd number of times."""

    corners: tuple[Spot, ...]


Prompt = Box | Scribble | Polygon | np.ndarray
"""What a user points at a region with; a mask is h w of the image, its one value above 0 is inside."""


def point(x: float, y: float) -> Scribble:
    """A point, x and y as fractions of the image."""
    return Scribble(((x, y),))


def mask_of(prompt: Prompt, image_hw: Size) -> Bool[np.ndarray, "h w"]:
    """The pixels that a prompt means, rows first; never empty.

    A box means the pixels that it touches, a scribble those within half its width, a polygon those whose middle it
    encloses.

    Raises:
        RequestError: a place outside the image, too few of them, a mask of another size or of several labels, or a
            prompt that means no pixel.
    """
    if isinstance(prompt, Box):
        x0, y0, x1, y1 = to_px(check_box(prompt, where="Region"), image_hw[::-1])
        mask = np.zeros(image_hw, dtype=bool)
        mask[y0:y1, x0:x1] = True
    elif isinstance(prompt, Scribble):
        mask = _drawn(_pixels(prompt.spots, 1, image_hw), prompt.width_frac * min(image_hw), image_hw)
    elif isinstance(prompt, Polygon):
        mask = _enclosed(_pixels(prompt.corners, 3, image_hw), image_hw)
    else:
        mask = _inside(prompt, image_hw)
    if not mask.any():
        raise RequestError(
            f"A region of kind {type(prompt).__name__} on an image of {image_hw[0]} x {image_hw[1]}",
            "No pixel lies in it",
            "Draw it larger, or leave the region out",
        )
    return mask


def region_weights(
    masks: Sequence[Bool[np.ndarray, "h w"]], frame: Frame, grid_hw: Size
) -> Float[np.ndarray, "n gh gw"]:
    """How much each patch counts for each region, float64 >= 0, with sum 1 over a region's patches.

    Args:
        masks: of n regions of one image, at its full size.
        frame: where the image lies in what the encoder sees.
        grid_hw: rows and columns of its patches; of merged ones for Qwen2.5-VL.

    Raises:
        RequestError: a mask of another size, or one that covers nothing of what the encoder sees.
    """
    weights = np.zeros((len(masks), *grid_hw))
    for place, mask in enumerate(masks):
        cover = frame.cover(mask, grid_hw)
        if cover.sum() == 0:
            raise RequestError(
                f"Region {place}, of {int(mask.sum())} pixels",
                "Nothing of it is left in the picture that the model sees",
                "Draw the region inside the image, and show the model all of the image",
            )
        weights[place] = cover / cover.sum()
    return weights


def pool(features: 'Float[Tensor, "p d"]', weights: Float[np.ndarray, "n gh gw"]) -> 'Float[Tensor, "n d"]':
    """The features of n regions: weighted means over the patches, row by row; gradient flows.

    Raises:
        RequestError: weights of another grid than the features'.
    """
    n, gh, gw = weights.shape
    if len(features) != gh * gw:
        raise RequestError(
            f"Regions on a grid of {gh} x {gw} and {len(features)} patches",
            "Each patch has a weight",
            "Make the weights with the grid of this image's features",
        )
    return features.new_tensor(weights.reshape(n, gh * gw)) @ features


def _pixels(spots: Sequence[Spot], fewest: int, image_hw: Size) -> Float[np.ndarray, "k 2"]:
    """x and y in px of the image, whose first pixel lies from 0 to 1."""
    places = np.array(spots, dtype=np.float64).reshape(-1, 2)
    outside = ~((places >= 0) & (places <= 1)).all(axis=1)  # NaN is outside
    if len(places) < fewest or outside.any():
        raise RequestError(
            f"A region has the spot {tuple(places[outside][0].tolist())}"
            if outside.any()
            else f"A region of {len(places)} spots",
            "Spots lie in the image" if outside.any() else f"It takes {fewest} or more",
            "Give x and y as fractions of the image, 0 to 1",
        )
    return places * np.array(image_hw[::-1])


def _middles(image_hw: Size) -> tuple[np.ndarray, np.ndarray]:
    """x as a row and y as a column, of the middle of each pixel."""
    return np.arange(image_hw[1]) + 0.5, (np.arange(image_hw[0]) + 0.5)[:, None]


def _drawn(places: np.ndarray, width_px: float, image_hw: Size) -> Bool[np.ndarray, "h w"]:
    mask, (x, y) = np.zeros(image_hw, dtype=bool), _middles(image_hw)
    for (x0, y0), (x1, y1) in zip(places, places[[*range(1, len(places)), -1]], strict=True):  # the last to itself
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / (length or 1.0), 0, 1)
        mask |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) <= width_px / 2
    columns, rows = np.minimum(places.astype(int), np.array(image_hw[::-1]) - 1).T
    mask[rows, columns] = True
    return mask


def _enclosed(places: np.ndarray, image_hw: Size) -> Bool[np.ndarray, "h w"]:
    """Even-odd rule: a ray from a pixel's middle to the left crosses the outline an odd number of times."""
    mask, (x, y) = np.zeros(image_hw, dtype=bool), _middles(image_hw)
    for (x0, y0), (x1, y1) in zip(places, np.roll(places, -1, axis=0), strict=True):
        if y0 != y1:  # a level edge is never crossed
            mask ^= ((y0 <= y) != (y1 <= y)) & (x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x)
    return mask


def _inside(mask: np.ndarray, image_hw: Size) -> Bool[np.ndarray, "h w"]:
    labels = np.unique(mask[mask != 0] if mask.shape == image_hw else ())
    if mask.shape != image_hw or len(labels) > 1:
        raise RequestError(
            f"A mask of shape {mask.shape}" + (f" with the labels {labels[:5].tolist()}" if len(labels) else ""),
            "Which of them is meant is not said" if len(labels) else f"The image is {image_hw[0]} x {image_hw[1]}",
            "Give a mask of one label, such as mask == 1" if len(labels) else "Give the mask of this image, rows first",
        )
    return mask != 0
