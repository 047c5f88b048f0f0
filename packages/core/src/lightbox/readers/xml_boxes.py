"""Boxes in XML: Pascal VOC, one file an image, and CVAT for images 1.1, one file a task. Corners are in pixels.

VOC: `Annotations/*.xml` in the folder or below it (BCCD/) hold `filename`, `size` and `object`s with `name` and
`bndbox`. `ImageSets/Main/{train,val,test}.txt` name the images of a split; without them there is none. Corners are
taken as edges counted from 0, as most tools write them; the original challenge counts pixels from 1 and includes the
last, which `counts_from_one` reads. Every image was looked at for every name that occurs. Seen: BCCD, whose corners are
never 0.

CVAT: every `*.xml` below the folder, with `<image name= width= height=>` and `<box label= xtl= ytl= xbr= ybr=>`. Labels
come from `<meta>` too, so that one without any box is absent everywhere. Other shapes are counted and not read; nothing
on their image is called absent. Seen: a task with boxes alone. Patients are unknown in both.
"""

from collections.abc import Iterator
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_fields, size_fields
from lightbox.readers.documents import read_lines
from lightbox.readers.findings import MarkedImage, Markings
from lightbox.readers.members import check_folder, is_there
from lightbox.readers.rows import Gathering, RowError, shown, text_field
from lightbox.readers.stores import tree_store
from lightbox.readers.xml_trees import Element, read_xml

SPLIT_FILES = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
VOC_EDGES, CVAT_EDGES = ("xmin", "ymin", "xmax", "ymax"), ("xtl", "ytl", "xbr", "ybr")
CVAT_SHAPES = ("polygon", "polyline", "points", "mask", "ellipse", "cuboid", "skeleton")


def read_voc(root: Path, rows: Gathering, *, split: str | None = None, counts_from_one: bool = False) -> None:
    """Read a folder of Pascal VOC; `counts_from_one` says that the first pixel is 1 and xmax, ymax lie inside a box.

    Raises:
        RequestError: no XML file, or no list of the split.
    """
    files = sorted(root.rglob("Annotations/*.xml"))
    if not files:
        raise RequestError(f"{rows.dataset} at '{root}'", "There is no Annotations/*.xml below it", "Name its folder")
    base = files[0].parents[1]
    splits = _splits(base, rows)
    if split is not None and split not in splits.values():
        why = f"There is no ImageSets/Main/{SPLIT_FILES[split]} in {base}, or it is empty"
        raise RequestError(f"split='{split}' of {rows.dataset}", why, "Leave the split out, or fetch the lists")
    # a list that is cut or spoiled would else pass for one of fewer images
    stems = {file.stem for file in files}
    rows.counts["listed_images_without_annotation"] = len(splits.keys() - stems)
    rows.counts["images_in_no_list"] = len(stems - splits.keys() - _undivided(base)) if splits else 0
    marks = Markings(rows, tree_store(base, rows))
    first = 1 if counts_from_one else 0
    for file in files:
        name, image = splits.get(file.stem, ""), None
        if split not in (None, name):
            rows.counts["images_of_other_splits"] += 1
            continue
        with rows.row(file, "all", counter="images"):
            tree = read_xml(file, "annotation")
            size_wh = size_fields(tree.child("size").fields("width", "height"), "width", "height")
            image_name = text_field(tree.fields("filename"), "filename")
            image = marks.image(image_name, "filename", split=name, size_wh=size_wh)
        for element in tree.all("object") if image else ():
            with rows.row(file, f"line {element.line}", counter="box_rows"), image.row():
                x0, y0, x1, y1 = edges_fields(element.child("bndbox").fields(*VOC_EDGES), VOC_EDGES)
                finding = text_field(element.fields("name"), "name")
                marks.add(image, finding, (x0 - first, y0 - first, x1, y1), "bndbox")
    marks.finish(base)


def _undivided(base: Path) -> set[str]:
    """Images of trainval.txt, which some sets divide no further."""
    file = base / "ImageSets" / "Main" / "trainval.txt"
    if not file.is_file() or not file.stat().st_size:
        return set()
    return {line.split()[0] for _, line in read_lines(file) if isinstance(line, str) and line.split()}


def _splits(base: Path, rows: Gathering) -> dict[str, str]:
    splits: dict[str, str] = {}
    for name, file_name in SPLIT_FILES.items():
        file = check_folder(check_folder(base / "ImageSets") / "Main") / file_name
        if not is_there(file) or file.is_file() and not file.stat().st_size:
            continue  # a split that nothing was drawn for has an empty list
        for number, line in read_lines(file):
            with rows.row(file, number, counter="split_rows"):
                if isinstance(line, RowError):
                    raise line
                if not line.split():
                    raise RowError("row", "is blank")
                stem = line.split()[0]  # a list of one class has a second column
                if splits.setdefault(stem, name) != name:
                    raise RowError("row", f"is {stem}, which stands in {splits[stem]} too; that is kept")
    return splits


def read_cvat(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read every CVAT file below `root`.

    Raises:
        RequestError: no XML file, or one that is not XML of this kind.
    """
    read_cvat_files(root, rows, Markings(rows, tree_store(root, rows)))


def read_cvat_files(root: Path, rows: Gathering, marks: Markings) -> None:
    """As `read_cvat`, with images and fields of cases as `marks` has them."""
    files = sorted(root.rglob("*.xml"))
    if not files:
        raise RequestError(f"{rows.dataset} at '{root}'", "There is no *.xml below it", "Name its folder with --root")
    for file in files:
        tree = read_xml(file, "annotations")
        for element in tree.all("image"):
            image: MarkedImage | None = None
            with rows.row(file, f"line {element.line}", counter="images"):
                size_wh = size_fields(element.attributes, "width", "height")
                image = marks.image(text_field(element.attributes, "name"), "name", size_wh=size_wh)
            for shape in element.children if image else ():
                if shape.tag in CVAT_SHAPES:
                    rows.counts["shapes_that_are_no_boxes"] += 1
                    image.is_whole = False
                elif shape.tag == "box":
                    with rows.row(file, f"line {shape.line}", counter="box_rows"), image.row():
                        name = text_field(shape.attributes, "label")
                        marks.add(image, name, edges_fields(shape.attributes, CVAT_EDGES))
                elif shape.tag != "tag":  # of the whole image
                    with rows.row(file, f"line {shape.line}", counter="box_rows"), image.row():
                        raise RowError(
                            "shape", f"is {shown(shape.tag)}, an element that CVAT does not write in an image"
                        )
        labels = {label for meta in tree.all("meta") for label in _labels(meta)}
        marks.finish(file, labels | marks.names)


def _labels(element: Element) -> Iterator[str]:
    """Names of the elements `<label>`, at any depth: in a task, a job or a project."""
    for child in element.children:
        yield from (name.text for name in child.all("name") if child.tag == "label")
        yield from _labels(child)
