"""MS-CXR: phrases of radiology reports with boxes on MIMIC-CXR images.

`MS_CXR_Local_Alignment_*.csv` (the newest, by name): dicom_id, category_name, label_text, path, x, y, w, h (left, top,
width, height in pixels), image_width, image_height and, from 1.1.0 on, split. Images are those of MIMIC-CXR-JPG, below
the folder at `path` or by name; without any, annotations are read alone. The finding is the category, its attribute
`phrase` the label_text; boxes of one phrase are one finding. The set says where something is and never that it is
absent. The patient is the folder p<8 digits> in `path`. Unseen: every file; the columns are as published.
"""

import re
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_fields, size_fields, xyxy_of_xywh
from lightbox.readers.documents import read_csv
from lightbox.readers.findings import Markings
from lightbox.readers.rows import Gathering, RowError, as_row, shown, text_field
from lightbox.readers.stores import tree_store

COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test", "": ""}
_PATIENT = re.compile(r"(?:^|/)p(\d{8})/")


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the newest CSV of a folder; rows of splits that are not asked for are counted.

    Raises:
        RequestError: no CSV, or one without a column.
    """
    files = sorted(root.glob("MS_CXR_Local_Alignment_*.csv"))
    if not files:
        raise RequestError(
            f"MS-CXR at '{root}'", "There is no MS_CXR_Local_Alignment_*.csv", "Name the folder that holds it"
        )
    marks = Markings(rows, tree_store(root, rows), patient_of=_patient_of, modality="X-ray", body_part="chest")
    for number, value in read_csv(files[-1], COLUMNS):
        with rows.row(files[-1], number, counter="box_rows"):
            row = as_row(value)
            name = SPLITS.get(text_field(row, "split", default="").lower())
            if name is None:
                raise RowError("split", f"is {shown(row['split'])}, not one of {', '.join(filter(None, SPLITS))}")
            rows.counts["rows_without_a_split"] += name == ""
            if split not in (None, name):
                rows.counts["rows_of_other_splits"] += 1
                continue
            size_wh = size_fields(row, "image_width", "image_height")
            path = text_field(row, "path")
            image = marks.image(path, "path", split=name, size_wh=size_wh, id=text_field(row, "dicom_id"))
            edges = xyxy_of_xywh(edges_fields(row, ("x", "y", "w", "h")))
            phrase = text_field(row, "label_text")
            marks.add(image, text_field(row, "category_name"), edges, "x", phrase=phrase)
    marks.finish(files[-1], ())


def _patient_of(path: str) -> str | None:
    named = _PATIENT.search(path)
    return named.group(1) if named else None
