"""Masks that stay in their files: a finding names the files and is decoded when its mask is asked for.

A record's `mask` is an array, which a set of 16 million masks cannot have in memory. `MaskedFinding` is a `Finding`
whose `mask` is None and whose `parts` say where its pixels are; `mask_of` gives the boolean mask of either kind, so a
pipeline runs on the phantom and on files alike. A question's `facts` hold the `id` of the masks that it rests on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers import volumes
from lightbox.readers.pixels import open_picture, pixels_fault
from lightbox.readers.rows import RowError
from lightbox.records import Finding

CHECKS = {
    "empty_masks": "a class is said to be present, and its mask marks nothing",
    "masks_of_another_size": "a mask has another size than its image",
    "masks_with_unknown_labels": "a mask holds labels that no class has",
    "masks_without_their_class": "a class is said to be present, and its file does not hold it",
    "masks_of_another_image": "a question shows one image, and its mask is of another",
    "questions_of_another_class": "a question names one class, and its mask is of another",
    "unreadable_masks": "a mask is missing or damaged",
}
"""Faults of masks by the name of their count."""
HALF_WHITE = 128


class MaskError(RowError):
    """A mask that cannot be used: `check` is a key of `CHECKS`; the reason says why and what to do."""

    def __init__(self, check: str, name: str, reason: str) -> None:
        assert check in CHECKS, check
        super().__init__(name, reason)
        self.check = check


@dataclass(frozen=True, slots=True)
class MaskPart:
    """A file that marks pixels.

    `values` are the labels that count as foreground; none stands for all but 0. `is_soft` says that a mask of 8 bits
    was drawn with soft edges, whose border is at half of white. `is_crop` says that the file holds the mask's frame
    alone, with its corner at `left`, `top` of the image, in pixels. `labels` are all labels that the file may hold;
    None for any.
    """

    path: Path
    values: tuple[int, ...] = ()
    is_soft: bool = False
    is_crop: bool = False
    left: int = 0
    top: int = 0
    labels: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class MaskedFinding(Finding):
    """A finding whose mask is the union of its `parts`; several parts are instances of it, such as nuclei.

    `size_wh` is the size of the image in pixels, None where the files have the image's size and nobody measured it.
    `id` is what a question's `facts` call it.
    """

    parts: tuple[MaskPart, ...] = ()
    size_wh: tuple[int, int] | None = None
    id: str = ""


def mask_of(finding: Finding) -> np.ndarray | None:
    """The mask of a finding, bool h w, True inside; None where it has none.

    Raises:
        RequestError: a file is missing, damaged, of another size, or marks nothing.
    """
    parts = getattr(finding, "parts", ())
    if finding.mask is not None or not parts:
        return finding.mask
    assert isinstance(finding, MaskedFinding)
    whole: np.ndarray | None = None
    for mask in instances_of(finding):
        whole = mask if whole is None else whole | mask
    return whole


def instances_of(finding: MaskedFinding) -> Iterator[np.ndarray]:
    """The mask of each part in turn, bool h w of the image; errors as `mask_of`."""
    size_wh = finding.size_wh
    for part in finding.parts:
        try:
            mask = part_mask(part, size_wh)
        except MaskError as err:
            raise RequestError(
                f"Mask '{part.path}' of {finding.name}", err.reason, "Run `lightbox data validate`"
            ) from err
        size_wh = mask.shape[1], mask.shape[0]  # the first part says what the others must have
        yield mask


def part_mask(part: MaskPart, size_wh: tuple[int, int] | None) -> np.ndarray:
    """The pixels that one file marks, bool h w of the image, at least one of them True.

    Args:
        part: see `MaskPart`.
        size_wh: of the image; None takes the file's.

    Raises:
        MaskError: by its `check`, what is wrong.
    """
    labels = load_labels(part.path)
    height, width = labels.shape
    if size_wh is None:
        size_wh = width, height
    if (width, height) != size_wh and not _is_crop(part, (width, height), size_wh):
        raise MaskError(
            "masks_of_another_size",
            "mask",
            f"is {part.path.name} of {width} x {height} pixels at ({part.left}, {part.top}), and its image has "
            f"{size_wh[0]} x {size_wh[1]}; which pixels it marks would be a guess; redraw it on its image, or drop it",
        )
    marked = _marked(part, labels)
    if (width, height) == size_wh:  # a frame as large as its image begins in the corner
        return marked
    whole = np.zeros((size_wh[1], size_wh[0]), dtype=bool)
    whole[part.top : part.top + height, part.left : part.left + width] = marked
    return whole


def _is_crop(part: MaskPart, file_wh: tuple[int, int], size_wh: tuple[int, int]) -> bool:
    """Whether a part says that it holds a frame alone, and that frame lies whole inside the image."""
    right, bottom = part.left + file_wh[0], part.top + file_wh[1]
    return part.is_crop and min(part.left, part.top) >= 0 and right <= size_wh[0] and bottom <= size_wh[1]


def _marked(part: MaskPart, labels: np.ndarray) -> np.ndarray:
    if part.labels is not None and not set(values := np.unique(labels).tolist()) <= part.labels:
        unknown = ", ".join(str(value) for value in values if value not in part.labels)
        raise MaskError(
            "masks_with_unknown_labels",
            "mask",
            f"is {part.path.name}, which holds the labels {unknown}; no class has them, so what they mark is unknown; "
            "name them with the reader's classes, or correct the file",
        )
    # a mask of one bit is stored as 0 and 1, and has no edges to be soft
    border = HALF_WHITE if part.is_soft and labels.max() > 1 else 1
    marked = np.isin(labels, part.values) if part.values else labels >= border
    if marked.any():
        return marked
    if part.values and (labels != 0).any():
        raise MaskError(
            "masks_without_their_class",
            "mask",
            f"is {part.path.name}, which holds {_some(labels)} and not {', '.join(map(str, part.values))}; "
            "the class is said to be present; correct the row or the file",
        )
    raise MaskError(
        "empty_masks",
        "mask",
        f"is {part.path.name}, black all over, so it marks nothing; its class is said to be present; "
        "draw it, or say that the class is absent",
    )


def load_labels(path: Path) -> np.ndarray:
    """The labels of a mask file, int64 h w, as stored: a palette's numbers and not its colours.

    A coloured mask is 0 where it is black or clear, else its brightest channel, so that any colour marks.

    Raises:
        MaskError: "unreadable_masks".
    """
    place = volumes.slice_place(path)
    try:
        if place is not None:
            return volumes.slice_labels(place)
        # opened first: that refuses a pipe, which looking for faults would wait for
        with open_picture(path) as picture:
            labels = _labels(picture)
        fault = pixels_fault(path) if path.suffix.lower() not in (".tif", ".tiff") else ""
        if fault:
            raise RequestError(f"Mask '{path}'", fault, "Fetch the file again")
        return labels
    except RequestError as err:
        raise MaskError("unreadable_masks", "mask", f"is {path.name}: {err.given} {err.why} {err.do}") from err
    except OSError as err:  # `pixels_fault` opens the file itself
        raise MaskError(
            "unreadable_masks", "mask", f"is {path.name}, which cannot be opened: {err.strerror}; fetch it again"
        ) from err


def _labels(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int64)
    if picture.mode.startswith("F"):
        raise RequestError("A mask of fractions", "Labels are whole numbers", "Save it as 8 or 16 bits")
    if picture.mode == "CMYK":
        raise RequestError("A mask in printing colours", "Its black is not 0", "Save it as PNG")
    colours = np.asarray(picture.convert("RGBA")).astype(np.int64)  # h w 4
    return np.where(colours[..., 3] > 0, colours[..., :3].max(axis=-1), 0)


def _some(labels: np.ndarray) -> str:
    values = np.unique(labels).tolist()
    return ", ".join(str(value) for value in values[:8]) + (" and more" if len(values) > 8 else "")
