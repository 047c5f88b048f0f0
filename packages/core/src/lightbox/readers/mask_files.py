"""Boxes around masks in files: COVID-19 chest X-ray segmentations, and the nuclei of the Data Science Bowl 2018.

COVID-19: `structure.csv` has one row a region: Filename (in `images/`), Template Name (the class), Mask (a PNG cropped
to the frame, coloured on black), Resolution (WxH of the image), and the frame in pixels as Left, Top, Width, Height.
The box is the tight one around the mask, so that a loose frame does no harm. A row without a mask frames the image: its
class is present, nobody says where. Whether every image was looked at for every class is not stated, so nothing is
absent. `metadata.csv` gives Filename (there: filename) its patientid. Seen: a part of the set.

Nuclei: `stage1_train/<id>/images/*.png` and one mask a nucleus in `masks/*.png`, white on black, of the image's size.
Seen: a part of the set. Patients are unknown.
"""

import re
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import number_field, size_fields
from lightbox.readers.documents import read_csv
from lightbox.readers.findings import MarkedImage, Markings, region_edges, region_of
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, as_row, inside, shown, text_field
from lightbox.readers.stores import ImageStore

COLUMNS = ("Template Name", "Filename", "Mask", "Resolution", "Top", "Left", "Width", "Height")
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
    marks = Markings(rows, ImageStore(root / "images"), patient_of=patients.get, modality="X-ray", body_part="chest")
    for number, value in read_csv(file, COLUMNS):
        with rows.row(file, number, counter="regions"):
            row = as_row(value)
            size = _SIZE.fullmatch(text_field(row, "Resolution"))
            if size is None:
                raise RowError("Resolution", f"is {shown(row['Resolution'])}, not WIDTHxHEIGHT")
            size_wh = int(size[1]), int(size[2])
            image = marks.image(text_field(row, "Filename"), "Filename", size_wh=size_wh)
            name, mask = text_field(row, "Template Name"), text_field(row, "Mask", default="")
            if not mask:
                image.finding(name)
                rows.counts["regions_without_a_mask"] += 1
                continue
            region = region_of(inside(root, mask, "Mask"), "Mask", size_wh=size_fields(row, "Width", "Height"))
            edges = region_edges(region, left=number_field(row, "Left"), top=number_field(row, "Top"))
            marks.add(image, name, edges, "Mask")
    marks.finish(file, ())


def read_nuclei(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the nuclei of `root`; they have no split, since the test images were published without masks.

    Raises:
        RequestError: there is no such folder, or it is empty.
    """
    folders = sorted(folder for folder in root.glob("stage1_train/*") if folder.is_dir())
    if not folders:
        raise RequestError(f"Nuclei at '{root}'", "There is no stage1_train/<id>/", "Name the folder that holds it")
    marks = Markings(rows, ImageStore(root), modality="microscopy")
    for folder in folders:
        image: MarkedImage | None = None
        with rows.row(folder, "all", counter="images"):
            pictures = sorted(folder.glob("images/*.png"))
            if len(pictures) != 1:
                raise RowError("images", f"holds {len(pictures)} PNG files where one belongs")
            image = marks.image(str(pictures[0].relative_to(root)), "images", id=folder.name)
        for mask in sorted(folder.glob("masks/*.png")) if image else ():
            with rows.row(mask, "all", counter="regions"), image.row():
                marks.add(image, "nucleus", region_edges(region_of(mask, "mask", size_wh=image.size_wh)), "mask")
    marks.finish(root, ())
