"""VinDr-CXR: boxes of several radiologists on chest radiographs, fused where they overlap.

`annotations_train.csv` and `annotations_test.csv`, in the folder or in `annotations/`: image_id, rad_id (or rad_ID;
train alone), class_name, x_min, y_min, x_max, y_max in pixels of the original image, one row a reader's box. A row with
the class "No finding" has empty boxes. Three readers drew on a training image, on a test image a consensus of five.
Images lie anywhere below the folder as `<image_id>.dicom`, .dcm or .png. Where `image_resolutions_<split>.json`
(image_id -> [rows, columns]) lies beside the CSV, boxes are measured by it, and the images may be scaled copies; else
each DICOM header is read. Boxes of one class on one image are fused by weighted box fusion above an IoU of 0.1, as
RadVLM does. Every image was looked at for every class that occurs. Unseen: every file; the columns are as published.
Patients are not published.
"""

from collections.abc import Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_fields, fuse_boxes, size_fields
from lightbox.readers.documents import read_csv, read_json
from lightbox.readers.findings import Markings
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, as_row, shown, text_field
from lightbox.readers.stores import tree_store

SPLITS = ("train", "test")
EDGES = ("x_min", "y_min", "x_max", "y_max")
NOTHING = "No finding"


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, fuses: bool = True) -> None:
    """Read the annotations of `root`; `fuses` False leaves every reader's box as it was drawn.

    Raises:
        RequestError: no annotation file, or one without a column.
    """
    splits = SPLITS if split is None else (split,)
    files = {
        name: file
        for name in splits
        for folder in (root / "annotations", root)
        if is_there(file := folder / f"annotations_{name}.csv")
    }
    if not files:
        names = " or ".join(f"annotations_{name}.csv" for name in splits)
        raise RequestError(f"VinDr-CXR at '{root}'", f"There is no {names}", "Name the folder that holds it")
    marks = Markings(rows, tree_store(root, rows), modality="X-ray", body_part="chest")
    for name, file in files.items():
        _read(file, name, rows, marks)
    if fuses:
        for image in marks.images.values():
            for boxes in image.boxes.values():
                rows.counts["boxes_before_fusion"] += len(boxes)
                boxes[:] = fuse_boxes(boxes)
    marks.finish(root)


def _read(file: Path, split: str, rows: Gathering, marks: Markings) -> None:
    sizes = _sizes(file.parent / f"image_resolutions_{split}.json", rows)
    for number, value in read_csv(file, ("image_id", "class_name", *EDGES)):
        with rows.row(file, number, counter="box_rows"):
            row = as_row(value)
            name = text_field(row, "image_id")
            size_wh = sizes.get(name)
            image = marks.image(name, "image_id", split=split, size_wh=size_wh, is_scaled=size_wh is not None)
            with image.row():
                finding = text_field(row, "class_name")
                has_edges = any(text_field(row, edge, default="") for edge in EDGES)
                if finding != NOTHING:
                    marks.add(image, finding, edges_fields(row, EDGES))
                elif has_edges:
                    raise RowError(EDGES[0], f"begins a box of '{NOTHING}': {shown([row[edge] for edge in EDGES])}")
                else:
                    rows.counts["rows_without_finding"] += 1


def _sizes(file: Path, rows: Gathering) -> Mapping[str, tuple[int, int]]:
    sizes: dict[str, tuple[int, int]] = {}
    for name, value in read_json(file, dict).items() if is_there(file) else ():
        with rows.row(file, name, counter="size_rows"):
            if not isinstance(value, list) or len(value) != 2:
                raise RowError("size", f"is {shown(value)}, not rows and columns")
            sizes[name] = size_fields({"rows": value[0], "columns": value[1]}, "columns", "rows")
    return sizes
