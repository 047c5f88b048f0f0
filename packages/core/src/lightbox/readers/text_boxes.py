"""Boxes in text files of one line a box, one file an image: YOLO and KITTI.

YOLO: class number, then centre x, centre y, width, height as fractions. The names of the classes stand one a line in
`classes.txt` or `obj.names`, or come as the option `classes`, separated by commas. KITTI: 15 fields by blanks, of which
the name, left, top, right and bottom (the 1st and 5th to 8th) are read; edges are pixels from 0; `DontCare` marks a
region that nobody annotated, so nothing on its image is called absent.

Files are `labels/**/*.txt`, or every `*.txt` that names an image below the folder. An image without a file was not
annotated and is counted; one whose file is empty holds nothing. The split is a folder called train, val, valid or test.
Every image was looked at for every class. Seen: a YOLO folder of Roboflow's kind and a KITTI folder. Patients are
unknown.
"""

from collections.abc import Sequence
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import number_field
from lightbox.readers.documents import read_lines
from lightbox.readers.findings import MarkedImage, Markings
from lightbox.readers.rows import Gathering, RowError, shown
from lightbox.readers.stores import tree_store

SPLIT_FOLDERS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}
CLASS_FILES = ("classes.txt", "obj.names")
YOLO_FIELDS = ("class", "x", "y", "width", "height")
KITTI_FIELDS = (
    *("type", "truncated", "occluded", "alpha", "left", "top", "right", "bottom"),
    *("height", "width", "length", "x", "y", "z", "rotation_y"),
)


def read_yolo(root: Path, rows: Gathering, *, split: str | None = None, classes: str = "") -> None:
    """Read a YOLO folder; `classes` are the names in order, separated by commas, or "" for those of a file.

    Raises:
        RequestError: no file, or no names of classes.
    """
    read_yolo_files(root, rows, Markings(rows, tree_store(root, rows)), classes=classes, split=split)


def read_yolo_files(
    root: Path, rows: Gathering, marks: Markings, *, classes: str = "", split: str | None = None
) -> None:
    """As `read_yolo`, with images and fields of cases as `marks` has them."""
    file = next((file for name in CLASS_FILES for file in sorted(root.rglob(name))), None)
    lines = classes.split(",") if classes else [line for _, line in read_lines(file)] if file else []
    names = [line.strip() for line in lines if isinstance(line, str) and line.strip()]
    if not names or len(names) < len(lines):
        raise RequestError(
            f"{rows.dataset} at '{root}'",
            f"Its classes are numbers, and no {' or '.join(CLASS_FILES)} names all of them",
            "Name them in order with the option classes, for example classes=mass,nodule",
        )
    for label_file, name in _label_files(root, rows, marks, split):
        _read(label_file, name, rows, marks, names)
    marks.finish(root, names)


def read_kitti(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read a KITTI folder.

    Raises:
        RequestError: no file.
    """
    marks = Markings(rows, tree_store(root, rows))
    for label_file, name in _label_files(root, rows, marks, split):
        _read(label_file, name, rows, marks, ())
    marks.finish(root)


def _label_files(root: Path, rows: Gathering, marks: Markings, split: str | None) -> list[tuple[Path, str]]:
    stems = {Path(name).stem for name in marks.store.members} if marks.store else set()
    files = sorted(root.rglob("labels/**/*.txt")) or [f for f in sorted(root.rglob("*.txt")) if f.stem in stems]
    files = [file for file in files if file.name not in CLASS_FILES]
    if not stems or not files:
        raise RequestError(
            f"{rows.dataset} at '{root}'",
            "There is no image below it" if files else "There is neither labels/**/*.txt nor a *.txt beside an image",
            "Name the folder that holds both",
        )
    images = {member for member in marks.store.members.values() if member} if marks.store else set()
    rows.counts["images_without_a_file"] = len({Path(image).stem for image in images} - {file.stem for file in files})
    splits = [(file, _split_of(file.relative_to(root))) for file in files]
    return [(file, name) for file, name in splits if split in (None, name)]


def _split_of(place: Path) -> str:
    return next((SPLIT_FOLDERS[part.lower()] for part in place.parts if part.lower() in SPLIT_FOLDERS), "")


def _read(file: Path, split: str, rows: Gathering, marks: Markings, names: Sequence[str]) -> None:
    """Read one file: YOLO where `names` are given, else KITTI."""
    image: MarkedImage | None = None
    content = b""
    with rows.row(file, "all", counter="images"):
        if not file.is_file():
            raise RowError("row", "is no file that can be read, but a folder, a pipe or a link to nothing")
        content = file.read_bytes().strip(b"\r\n")
        if content and not content.strip():
            raise RowError("row", "is blanks alone, where a file without boxes is empty")
        image = marks.image(file.stem, "image", split=split, in_px=not names, id=file.stem)
    if image is None or not content:  # an empty file says that there is nothing
        return
    for number, line in read_lines(file):
        with rows.row(file, number, counter="box_rows"), image.row():
            row = _fields(line, YOLO_FIELDS if names else KITTI_FIELDS)
            if not names and row["type"] == "DontCare":
                rows.counts["regions_without_annotation"] += 1
                image.is_whole = False
            elif not names:
                marks.add(image, row["type"], [number_field(row, name) for name in ("left", "top", "right", "bottom")])
            else:
                place, x, y, width, height = (number_field(row, name) for name in YOLO_FIELDS)
                if place not in range(len(names)):
                    raise RowError("class", f"is {shown(row['class'])} with {len(names)} classes, counted from 0")
                if max(x, y, width, height) > 2:
                    raise RowError("x", f"to height are {x, y, width, height}, pixels where fractions are declared")
                edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                marks.add(image, names[int(place)], edges)


def _fields(line: str | RowError, names: Sequence[str]) -> dict[str, str]:
    if isinstance(line, RowError):
        raise line
    cells = line.split()
    if len(cells) != len(names):
        raise RowError("row", f"has {len(cells)} fields by blanks where {len(names)} belong: {', '.join(names)}")
    return dict(zip(names, cells, strict=True))
