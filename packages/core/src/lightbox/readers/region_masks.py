"""Masks of two sets that `mask_files` reads boxes from: COVID-19 chest X-rays, and nuclei; the same rows, with masks.

COVID-19: a mask is a PNG cropped to a frame, coloured on opaque black; it is placed into the image at the frame's
corner. A row without a mask names a class that is present and not drawn.

Nuclei: one mask a nucleus; they are the parts of one finding, so that `masks.instances_of` gives each of them and
`masks.mask_of` all nuclei of an image.
"""

import re
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import number_field, size_fields
from lightbox.readers.documents import read_csv
from lightbox.readers.mask_files import COLUMNS
from lightbox.readers.masked_cases import MaskedCases, MaskedImage, check_name
from lightbox.readers.masks import MaskError, MaskPart
from lightbox.readers.members import is_there
from lightbox.readers.pixels import pixels_size_wh
from lightbox.readers.rows import Gathering, RowError, as_row, case_id_of, inside, shown, text_field
from lightbox.records import Case

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def read_covid(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the COVID-19 segmentations of `root`; they have no split.

    Raises:
        RequestError: `structure.csv` is missing, or a column of it.
    """
    patients: dict[str, str] = {}
    metadata, file = root / "metadata.csv", root / "structure.csv"
    for number, value in read_csv(metadata, ("filename", "patientid")) if is_there(metadata) else ():
        with rows.row(metadata, number, counter="metadata_rows"):
            row = as_row(value)
            patients[text_field(row, "filename")] = text_field(row, "patientid")
    cases = MaskedCases(rows, modality="X-ray", body_part="chest")
    for number, value in read_csv(file, COLUMNS):
        image: MaskedImage | None = None
        with rows.row(file, number, counter="region_rows"):
            row = as_row(value)
            name = text_field(row, "Filename")
            path = inside(root / "images", name, "Filename")
            case = Case(id=case_id_of(path.name), images=(path,), patient_id=patients.get(name))
            image = cases.image(case, "Filename")
        if image is None:
            continue
        with cases.row(image, file, number):
            row = as_row(value)
            _check_size(text_field(row, "Resolution"), image)
            class_name, mask = check_name(text_field(row, "Template Name")), text_field(row, "Mask", default="")
            if mask:
                cases.mark(image, class_name, _placed(row, inside(root, mask, "Mask")))
            else:
                image.boxes.setdefault(class_name, [])
                rows.counts["regions_without_a_mask"] += 1
    cases.finish(file)


def _check_size(text: str, image: MaskedImage) -> None:
    size = _SIZE.fullmatch(text)
    if size is None:
        raise RowError("Resolution", f"is {shown(text)}, not WIDTHxHEIGHT")
    if (int(size[1]), int(size[2])) != image.size_wh:
        width, height = image.size_wh
        raise RowError("Resolution", f"is {text}, but the image has {width} x {height} pixels")


def _placed(row, path: Path) -> MaskPart:
    """The crop of a row at its frame's corner, whose size must be the frame's."""
    frame_wh = size_fields(row, "Width", "Height")
    left, top = number_field(row, "Left"), number_field(row, "Top")
    if left != int(left) or top != int(top):
        raise RowError("Left", f"is {left:g} and Top is {top:g}, which are no whole pixels")
    try:
        size_wh = pixels_size_wh(path)
    except RequestError as err:
        reason = f"is {path.name}, which cannot be opened: {err.why} {err.do}"
        raise MaskError("unreadable_masks", "Mask", reason) from err
    if size_wh != frame_wh:
        raise MaskError(
            "masks_of_another_size",
            "Mask",
            f"is {path.name} of {size_wh[0]} x {size_wh[1]} pixels, and its frame has {frame_wh[0]} x {frame_wh[1]}; "
            "where it lies in the image would be a guess; correct Width and Height, or fetch the mask again",
        )
    return MaskPart(path, is_crop=True, left=int(left), top=int(top))


def read_nuclei(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the nuclei of `root`; they have no split, since the test images were published without masks.

    Raises:
        RequestError: there is no such folder, or it is empty.
    """
    folders = sorted(folder for folder in root.glob("stage1_train/*") if folder.is_dir())
    if not folders:
        raise RequestError(f"Nuclei at '{root}'", "There is no stage1_train/<id>/", "Name the folder that holds it")
    cases = MaskedCases(rows, modality="microscopy")
    for folder in folders:
        image: MaskedImage | None = None
        with rows.row(folder, "all", counter="images"):
            pictures = sorted(folder.glob("images/*.png"))
            if len(pictures) != 1:
                raise RowError("images", f"holds {len(pictures)} PNG files where one belongs")
            image = cases.image(Case(id=folder.name, images=(pictures[0],)), "images")
        for mask in sorted(folder.glob("masks/*.png")) if image else ():
            with cases.row(image, mask, "all"):
                cases.mark(image, "nucleus", MaskPart(mask))
    cases.finish(root)
