"""Boxes on NIH chest radiographs: the official list, and the masses and nodules of drpradeepAI in four forms.

`BBox_List_2017.csv` has the columns Image Index, Finding Label, and left, top, width, height in pixels of the 1024 x
1024 image, headed "Bbox [x", "y", "w", "h]", then three without a name; a row boxes one of 8 findings. The images lie
anywhere below the folder (images_001/images/ ...), or not at all. The list says where a finding is, not what else the
image shows: absence is known only from `Data_Entry_2017*.csv` (Image Index, Finding Labels separated by "|"), where it
is there; a finding that it names without a box is present without one. Its "Infiltration" is "Infiltrate" in the list.
Unseen: a row of either file.

The masses: `annotated_data/{COCO,VOC,CSV,YOLO}`, of which "VOC" holds CVAT's XML. All four hold the same boxes, rounded
each in its way. Seen: a part of that set.

The patient is the part of an image's name before the first "_", in both.
"""

from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.box_csv import BoxColumns, read_box_csv
from lightbox.readers.boxes import edges_fields, xyxy_of_xywh
from lightbox.readers.coco import read_files as read_coco_files
from lightbox.readers.documents import read_csv
from lightbox.readers.findings import Markings
from lightbox.readers.rows import Gathering, as_row, text_field
from lightbox.readers.stores import tree_store
from lightbox.readers.text_boxes import read_yolo_files
from lightbox.readers.xml_boxes import read_cvat_files

FILE, ENTRIES = "BBox_List_2017.csv", "Data_Entry_2017*.csv"
EDGE_COLUMNS = ("Bbox [x", "y", "w", "h]")
SIZE_WH = (1024, 1024)
SAME = {"Infiltration": "Infiltrate"}
FIELDS = {"modality": "X-ray", "body_part": "chest"}
FORMS = {"coco": "COCO", "cvat": "VOC", "csv": "CSV", "yolo": "YOLO"}


def read_list(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the official list of `root`; it has no split.

    Raises:
        RequestError: the list is missing, or a column of it.
    """
    marks = Markings(rows, tree_store(root, rows), patient_of=patient_of, **FIELDS)
    for number, value in read_csv(root / FILE, ("Image Index", "Finding Label", *EDGE_COLUMNS)):
        with rows.row(root / FILE, number, counter="box_rows"):
            row = as_row(value)
            image = marks.image(text_field(row, "Image Index"), "Image Index", size_wh=SIZE_WH)
            with image.row():
                edges = xyxy_of_xywh(edges_fields(row, EDGE_COLUMNS))
                marks.add(image, text_field(row, "Finding Label"), edges, "Bbox")
    classes = marks.names
    for file in sorted(root.glob(ENTRIES))[:1]:
        for number, value in read_csv(file, ("Image Index", "Finding Labels")):
            with rows.row(file, number, counter="label_rows"):
                row = as_row(value)
                image = marks.images.get(("", text_field(row, "Image Index")))
                labels = text_field(row, "Finding Labels").split("|")
                if image is not None:
                    named = {SAME.get(label, label) for label in labels} & classes
                    for name in sorted(named - image.names):
                        image.finding(name)
                    image.absent |= classes - named if image.is_whole else set()
    marks.finish(root / FILE, ())


def read_masses(root: Path, rows: Gathering, *, split: str | None = None, form: str = "coco") -> None:
    """Read the masses and nodules of `root`, without a split; `form` is "coco", "cvat", "csv" or "yolo".

    Raises:
        RequestError: an unknown form, or its files are missing.
    """
    folder = root / "annotated_data" / FORMS.get(form, "")
    if form not in FORMS or not folder.is_dir():
        why = f"The forms are {', '.join(FORMS)}" if form not in FORMS else f"There is no folder {folder}"
        raise RequestError(f"form='{form}' of {rows.dataset}", why, "Choose another, or fetch the set again")
    marks = Markings(rows, tree_store(root, rows), patient_of=patient_of, **FIELDS)
    if form == "coco":
        read_coco_files(folder, rows, marks)
    elif form == "cvat":
        read_cvat_files(folder, rows, marks)
    elif form == "yolo":
        read_yolo_files(folder, rows, marks, classes="Mass,Nodule")
    else:
        for file in sorted(folder.glob("*.csv")):
            read_box_csv(file, rows, marks, BoxColumns("image_file", size=("width", "height")))


def patient_of(name: str) -> str:
    """The patient in the name of an NIH image: 00000001_000.png -> 00000001."""
    return Path(name).name.partition("_")[0]
