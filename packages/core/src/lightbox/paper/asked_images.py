"""The image that a person asks about, and the regions that the question means, as `predict` is given them. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.pixel_prompts import Prompt, Scribble, mask_of
from lightbox.readers.cuts import Cut, is_nifti, open_cut
from lightbox.readers.images import load_image
from lightbox.readers.masks import MaskError, load_labels
from lightbox.readers.stores import image_fault
from lightbox.records import Box

SHOWN_LABELS = 5


@dataclass(frozen=True)
class MaskFile:
    """A region that a file marks.

    Args:
        file: an image of the asked image's size, or a label volume on its voxels where that is NIfTI.
        label: that is inside; None for a file of one label, whether that is 1 or 255.
    """

    file: Path
    label: int | None = None


Region = Box | Scribble | MaskFile
"""What a question is about; places are fractions of the image, a scribble of one spot is a point."""


@dataclass(frozen=True)
class AskedImage:
    """An image that a question is about.

    Args:
        pixels: uint8, h w or h w 3, all of the image at its full size.
        cut: the slice that it is, for a NIfTI file; None for every other.
    """

    pixels: np.ndarray
    cut: Cut | None = None


def open_image(file: Path, slice_name: str = "") -> AskedImage:
    """Read an image to ask about.

    Args:
        file: PNG, JPEG, DICOM, or NIfTI.
        slice_name: of a NIfTI file, see `cuts.open_cut`.

    Raises:
        RequestError: a file that cannot be read, or a slice that is missing or of no volume.
    """
    if is_nifti(file):
        cut = open_cut(file, slice_name)
        return AskedImage(cut.pixels(), cut)
    if slice_name:
        raise RequestError(
            f"--slice is '{slice_name}', and --image '{file}'",
            "Slices are of volumes, in files that end in .nii or .nii.gz",
            "Leave --slice out, or name such a file",
        )
    return AskedImage(load_image(file, in_colour=True))


def check_whole(file: Path) -> None:
    """Refuse a PNG or JPEG that decodes without a word, to other pixels than were written.

    Raises:
        RequestError: a checksum that does not hold, or an image without its end.
    """
    try:
        fault = image_fault(file) if file.is_file() else ""
    except OSError:
        return  # who reads it says so
    if fault:
        raise RequestError(f"Image '{file}'", f"{fault}, so it is damaged", "Fetch the file again")


def read_regions(regions: Sequence[Region], image: AskedImage) -> tuple[Prompt, ...]:
    """Regions as prompts of an image, masks as their pixels.

    Raises:
        RequestError: a region outside the image or without a pixel in it; a mask that cannot be read, is of another
            size, marks nothing, or has several labels and none named.
    """
    prompts = [_marked(region, image) if isinstance(region, MaskFile) else region for region in regions]
    for prompt in prompts:
        mask_of(prompt, image.pixels.shape[:2])  # said before a model is loaded
    return tuple(prompts)


def option_of(region: Region) -> str:
    """A region as it is asked for at the command line.

    Example:
        >>> option_of(Box(0, 0, 0.5, 1)), option_of(Scribble(((0.25, 0.5),)))
        ('--box 0,0,0.5,1', '--point 0.25,0.5')
    """
    if isinstance(region, MaskFile):
        return f"--mask {region.file}" + ("" if region.label is None else f":{region.label}")
    name, places = ("box", region) if isinstance(region, Box) else ("point", region.spots[0])
    return f"--{name} {','.join(f'{place:g}' for place in places)}"


def _marked(region: MaskFile, image: AskedImage) -> np.ndarray:
    """The pixels that a file marks, bool h w."""
    labels, size_hw = _labels(region.file, image), image.pixels.shape[:2]
    if labels.shape != size_hw:
        raise RequestError(
            f"{option_of(region)} has {labels.shape[1]} x {labels.shape[0]} pixels",
            f"The image has {size_hw[1]} x {size_hw[0]}, so which of its pixels are meant would be a guess",
            "Draw the mask on this image, at its full size",
        )
    values = np.unique(labels[labels != 0]).tolist()
    if not values:
        raise RequestError(
            f"{option_of(region)} is 0 all over", "So it marks nothing", "Draw the region, or leave --mask out"
        )
    some = ", ".join(map(str, values[:SHOWN_LABELS])) + (" and more" if len(values) > SHOWN_LABELS else "")
    if region.label is None and len(values) > 1:
        raise RequestError(
            f"{option_of(region)} has {len(values)} labels: {some}",
            "Which of them is meant is not said; soft edges make labels too",
            f"Name one, such as --mask {region.file}:{values[0]}, or save the mask without soft edges",
        )
    if region.label is not None and region.label not in values:
        raise RequestError(f"{option_of(region)}", f"The file's labels are {some}", "Name one of these")
    return labels == (values[0] if region.label is None else region.label)


def _labels(file: Path, image: AskedImage) -> np.ndarray:
    if is_nifti(file):
        if image.cut is None:
            raise RequestError(
                f"--mask is '{file}', and the image is no NIfTI file",
                "Where its voxels lie in the image is unknown",
                "Save the mask as PNG, at the image's size",
            )
        return image.cut.labels(file)
    try:
        return load_labels(file)
    except MaskError as err:
        raise RequestError(f"--mask is '{file}'", f"It {err.reason}", "Name a PNG file of the image's size") from err
