"""Where an image lies in what an encoder sees, and the way back, in one place: letterboxed, stretched, or cut.

Nothing is resampled on the way in: the cover of a cell is an exact area. On the way back a mask is read off the grid at
the middle of each pixel, in one step, so no window is ever rounded to the grid. MedPLIB's official code cuts a window
measured at 256 px out of logits of 64, which is wrong where an image is not square; `official_reading` shows what
becomes of a mask on that way. No torch: tensors come and go.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from lightbox.errors import RequestError
from lightbox.readers.images import letterbox_box
from lightbox.records import Box

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""Rows and columns."""
OFFICIAL_CELLS, OFFICIAL_SCALE = 64, 4
"""Logits a side of MedPLIB's segmenter, and px of its canvas a logit: 256 px on 64 cells."""


@dataclass(frozen=True)
class Frame:
    """An image on the canvas that an encoder sees.

    Args:
        image_hw: rows and columns of the image.
        canvas_hw: of the canvas, in px of its own.
        top, left: where the image begins there; below 0 where it is cropped.
        height, width: of the image there.
    """

    image_hw: Size
    canvas_hw: Size
    top: float
    left: float
    height: float
    width: float

    def cover(self, mask: Bool[np.ndarray, "h w"], grid_hw: Size) -> Float[np.ndarray, "gh gw"]:
        """The share of each cell of a grid over the canvas that a mask covers, float64 in [0, 1]; exact.

        Raises:
            RequestError: a mask of another size than the image.
        """
        if mask.shape != self.image_hw:
            raise RequestError(
                f"A mask of {' x '.join(map(str, mask.shape))} for an image of {' x '.join(map(str, self.image_hw))}",
                "Rows and columns of a mask are those of its image",
                "Give the mask of this image, rows first",
            )
        rows = _overlaps(mask.shape[0], self.top, self.height, grid_hw[0], self.canvas_hw[0])
        columns = _overlaps(mask.shape[1], self.left, self.width, grid_hw[1], self.canvas_hw[1])
        return rows @ mask @ columns.T

    def unpad(self, logits: 'Float[Tensor, "... gh gw"]') -> 'Float[Tensor, "... h w"]':
        """Read values over the canvas at the pixels of the image, bilinear; gradient flows.

        Args:
            logits: on a grid over the whole canvas, filling included.
        """
        gh, gw = logits.shape[-2:]
        rows = _readings(self.image_hw[0], self.top, self.height, gh, self.canvas_hw[0])
        columns = _readings(self.image_hw[1], self.left, self.width, gw, self.canvas_hw[1])
        return logits.new_tensor(rows) @ logits @ logits.new_tensor(columns.T)


def letterboxed(image_hw: Size, side_px: int) -> Frame:
    """In the middle of a square, as `lightbox.readers.images.letterbox` puts it, and MedPLIB for both its encoders."""
    x0, y0, x1, y1 = (round(edge * side_px) for edge in letterbox_box(_WHOLE, image_hw=image_hw, image_px=side_px))
    return Frame(image_hw, (side_px, side_px), y0, x0, y1 - y0, x1 - x0)


def stretched(image_hw: Size, canvas_hw: Size) -> Frame:
    """Over all of a canvas, as Qwen2.5-VL does, whose grid has the image's aspect but for rounding."""
    return Frame(image_hw, canvas_hw, 0, 0, *canvas_hw)


def official_window(length_px: int) -> slice:
    """The cells of a side of 64 that MedPLIB's official code takes for an image of so many px of the canvas's 256.

    It takes px for cells: the window begins at half of what 64 is longer than the image, and for all but the narrowest
    images that is below 0, which in Python counts from the end.

    Example:
        >>> [official_window(px) for px in (256, 200, 128, 48)]
        [slice(0, 64, None), slice(0, 64, None), slice(32, 64, None), slice(8, 56, None)]
    """
    start = (OFFICIAL_CELLS - length_px) // 2
    return slice(*slice(start, start + length_px).indices(OFFICIAL_CELLS)[:2])


def official_reading(logits: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """What MedPLIB's official code reads where these are the logits at the pixels of the image, float64.

    They are laid on the grid over a canvas with the image in its middle, with nothing drawn in the filling, that is the
    lowest of them; the official window is cut out, and stretched to the image again. An image as high as it is wide
    fills the canvas, and its window is all of it.
    """
    frame = letterboxed(logits.shape, OFFICIAL_CELLS)
    (top, height), (left, width) = (
        (round(a), round(b)) for a, b in ((frame.top, frame.height), (frame.left, frame.width))
    )
    grid = np.full((OFFICIAL_CELLS, OFFICIAL_CELLS), logits.min(), dtype=np.float64)
    grid[top : top + height, left : left + width] = _resampled(logits, (height, width))
    seen = grid[official_window(height * OFFICIAL_SCALE), official_window(width * OFFICIAL_SCALE)]
    return _resampled(seen, logits.shape)


_WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def _resampled(values: Float[np.ndarray, "_ _"], size_hw: Size) -> Float[np.ndarray, "_ _"]:
    """Values read at the middles of the cells of another grid over the same rectangle, bilinear."""
    rows, columns = (_readings(n, 0, n, cells, n) for n, cells in zip(size_hw, values.shape, strict=True))
    return rows @ values @ columns.T


def _overlaps(n: int, start: float, length: float, cells: int, canvas: int) -> Float[np.ndarray, "cells n"]:
    """Share of each cell of a canvas side that each of n pixels covers, which lie from `start` over `length`."""
    edges = start + np.arange(n + 1) * length / n
    borders = np.arange(cells + 1) * canvas / cells
    shared = np.minimum(edges[1:], borders[1:, None]) - np.maximum(edges[:-1], borders[:-1, None])
    return np.maximum(shared, 0) * cells / canvas


def _readings(n: int, start: float, length: float, cells: int, canvas: int) -> Float[np.ndarray, "n cells"]:
    """Weights of the two cells between whose middles the middle of each of n pixels lies; ends are held."""
    middles = (start + (np.arange(n) + 0.5) * length / n) * cells / canvas - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(middles, 0, cells - 1)[:, None] - np.arange(cells)))
