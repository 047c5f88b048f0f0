"""COCO JSON: objects `images`, `annotations`, `categories`; boxes are left, top, width, height in pixels from 0.

Every `*.json` anywhere below the folder that holds these three lists is read; others are counted. The split is the word
train, val or test in the file's name, else none. Every image was looked at for every category. Masks (`segmentation`)
are not read, and a box of a crowd (`iscrowd` 1) is left out: it is no single object, and nothing on its image is called
absent. Seen: a file that CVAT or Roboflow wrote. Patients are unknown.
"""

from collections.abc import Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_list, size_fields, xyxy_of_xywh
from lightbox.readers.documents import read_json
from lightbox.readers.findings import MarkedImage, Markings
from lightbox.readers.rows import Gathering, RowError, as_row, shown, text_field
from lightbox.readers.stores import tree_store

LISTS = ("images", "annotations", "categories")
SPLIT_WORDS = {"train": "train", "val": "validation", "test": "test"}


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read every COCO file below `root`; images lie anywhere in it, or in one zip file there.

    Raises:
        RequestError: no such file, or one that is not JSON.
    """
    read_files(root, rows, Markings(rows, tree_store(root, rows)), split=split)


def read_files(root: Path, rows: Gathering, marks: Markings, *, split: str | None = None) -> None:
    """As `read_cases`, with images and fields of cases as `marks` has them."""
    files = [file for file in sorted(root.rglob("*.json")) if split in (None, split_of(file.name))]
    documents = [(file, read_json(file, object, may_be_empty=True)) for file in files]
    documents = [(file, value) for file, value in documents if isinstance(value, dict) and value.keys() >= {*LISTS}]
    rows.counts["json_files_of_another_kind"] = len(files) - len(documents)
    if not documents:
        raise RequestError(
            f"{rows.dataset} at '{root}'" + (f", split '{split}'" if split else ""),
            f"No *.json below it is an object with {', '.join(LISTS)}",
            "Name the folder that holds the annotations with --root",
        )
    for file, document in documents:
        for name in LISTS:
            if not isinstance(document[name], list):
                raise RequestError(f"File '{file}'", f"Its '{name}' is no list", "Fetch the file again")
        _read(file, document, rows, marks)


def split_of(name: str) -> str:
    """The split that the name of a file says; "" where it says none."""
    return next((split for word, split in SPLIT_WORDS.items() if word in name.lower()), "")


def _read(file: Path, document: Mapping[str, list], rows: Gathering, marks: Markings) -> None:
    classes, images = dict[str, str](), dict[str, MarkedImage | None]()
    for number, value in enumerate(document["categories"], start=1):
        with rows.row(file, f"categories {number}", counter="categories"):
            row = as_row(value)
            classes[_free_id(row, classes)] = text_field(row, "name")
    for number, value in enumerate(document["images"], start=1):
        with rows.row(file, f"images {number}", counter="images"):
            row = as_row(value)
            key = _free_id(row, images)
            images[key] = None
            size_wh = size_fields(row, "width", "height")
            images[key] = marks.image(
                text_field(row, "file_name"), "file_name", split=split_of(file.name), size_wh=size_wh
            )
    for number, value in enumerate(document["annotations"], start=1):
        with rows.row(file, f"annotations {number}", counter="box_rows"):
            _mark(as_row(value), rows, marks, images, classes)
    marks.finish(file, classes.values())


def _free_id(row: Mapping[str, object], others: Mapping[str, object]) -> str:
    key = text_field(row, "id")
    if key in others:
        raise RowError("id", f"is {key}, as in a row before; the first is kept")
    return key


def _mark(
    row: Mapping[str, object],
    rows: Gathering,
    marks: Markings,
    images: Mapping[str, MarkedImage | None],
    classes: Mapping[str, str],
) -> None:
    key = text_field(row, "image_id")
    if key not in images:
        raise RowError("image_id", f"is {key}, which no image has")
    image = images[key]
    if image is None:  # one defect, named at the image
        rows.counts["boxes_of_malformed_images"] += 1
        return
    with image.row():
        name = classes.get(text_field(row, "category_id"))
        if name is None:
            raise RowError("category_id", f"is {shown(row['category_id'])}, which no category has")
        xyxy = xyxy_of_xywh(edges_list(row.get("bbox"), "bbox"))
        if row.get("iscrowd"):
            rows.counts["boxes_of_crowds"] += 1
            image.is_whole = False
        else:
            marks.add(image, name, xyxy, "bbox")
