"""Under which image a sample is scored: its own, a blank one, another case's. No torch.

Blank is a mid-grey image; shuffled gives each sample the image of another case. Both say how much of a score is the
image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.samples import Split
from lightbox.readers.images import image_size_wh, letterbox, load_image

IMAGE, BLANK, SHUFFLED = "image", "blank", "shuffled"
GREY = 128


def shown_rows(split: Split[Any], *, seed: int) -> dict[str, list[int]]:
    """For each condition the row of the image that each sample is shown; one past the last row is the blank image."""
    return {
        IMAGE: [sample.image for sample in split.samples],
        BLANK: [len(split.case_ids)] * len(split.samples),
        SHUFFLED: shuffled_rows(split, seed=seed),
    }


def shuffled_rows(split: Split[Any], *, seed: int) -> list[int]:
    """For each sample the image of another case: cases in random order, each takes the next one's, none its own."""
    order = np.random.default_rng([seed, 4, 0]).permutation(len(split.case_ids)).tolist()
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    return [other[sample.image] for sample in split.samples]


class Pictures(Sequence[Image.Image]):
    """The images of some rows of a split as a model with its own tower sees them, decoded when they are asked for.

    Args:
        split: its images.
        rows: of them; one past the last is the blank image.
        image_px: longest side, in pixels.
    """

    def __init__(self, split: Split[Any], rows: Sequence[int], *, image_px: int) -> None:
        self._split, self._rows, self._image_px = split, rows, image_px

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...
    def __getitem__(self, index: int | slice) -> "Image.Image | Pictures":
        """One picture; a slice decodes nothing yet."""
        if isinstance(index, slice):
            return Pictures(self._split, self._rows[index], image_px=self._image_px)
        images, row = self._split.images, self._rows[index]
        return grey(images[0], self._image_px) if row == len(images) else picture(images[row], self._image_px)


def picture(image: np.ndarray | Path, image_px: int) -> Image.Image:
    """A square with the image in its middle, grey or in colour; its side is the image's longer one, at most `image_px`.

    A square, because a processor that crops would otherwise cut the edges off.
    """
    pixels = load_image(image, in_colour=True)
    return Image.fromarray(letterbox(pixels, min(image_px, max(pixels.shape))))


def shown_px(image: np.ndarray | Path, image_px: int) -> int:
    """Side of `picture` without decoding a file; `image_px`, the most there can be, where its header is no PNG's."""
    try:
        size = image.shape[:2] if isinstance(image, np.ndarray) else image_size_wh(image)
    except RequestError:  # DICOM, or a row of a table
        return image_px
    return min(image_px, max(size))


def grey(like: np.ndarray | Path, image_px: int) -> Image.Image:
    """The blank image: mid-grey, of the size that another one is shown in."""
    return Image.new("L", picture(like, image_px).size, GREY)
