"""Boxes in CSV, one a row: image, label, corners; in fractions, or in pixels of a size that the row states.

The catalogue reads so the blood-cell set of A. Aslan: `annotations.csv` (corners as fractions) and `images/image-*.png`
of 256 x 256; `labels/*.txt` (KITTI) hold the same boxes in pixels. Seen: that set. Patients are unknown.
"""

from dataclasses import dataclass
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_fields, size_fields
from lightbox.readers.documents import read_csv
from lightbox.readers.findings import Markings
from lightbox.readers.rows import Gathering, as_row, text_field
from lightbox.readers.stores import tree_store
from lightbox.readers.text_boxes import read_kitti

FORMS = ("csv", "kitti")


@dataclass(frozen=True)
class BoxColumns:
    """Names of the columns; `size` (width, height) is empty where the corners are fractions."""

    image: str
    label: str = "label"
    edges: tuple[str, ...] = ("xmin", "ymin", "xmax", "ymax")
    size: tuple[str, ...] = ()


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, form: str = "csv") -> None:
    """Read the blood-cell set below `root`; `form` is "csv" or "kitti", `split` None.

    Raises:
        RequestError: an unknown form, or its files are missing.
    """
    if form not in FORMS:
        raise RequestError(f"form='{form}'", f"The forms are {', '.join(FORMS)}", "Choose one of them")
    if form == "kitti":
        read_kitti(root, rows)
    else:
        marks = Markings(rows, tree_store(root, rows), modality="microscopy")
        read_box_csv(root / "annotations.csv", rows, marks, BoxColumns("image"))


def read_box_csv(file: Path, rows: Gathering, marks: Markings, columns: BoxColumns) -> None:
    """Read one CSV file; every image was looked at for every label that occurs.

    Raises:
        RequestError: the file cannot be read, or lacks a column.
    """
    for number, value in read_csv(file, (columns.image, columns.label, *columns.edges, *columns.size)):
        with rows.row(file, number, counter="box_rows"):
            row = as_row(value)
            size_wh = size_fields(row, *columns.size) if columns.size else None
            name = text_field(row, columns.image)
            image = marks.image(name, columns.image, size_wh=size_wh, in_px=bool(columns.size))
            with image.row():
                marks.add(image, text_field(row, columns.label), edges_fields(row, columns.edges))
    marks.finish(file)
