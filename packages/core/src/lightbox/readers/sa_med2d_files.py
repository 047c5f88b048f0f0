"""Names, lists and folders of SA-Med2D-20M, which MeCoVQA asks about too: what `sa_med2d` and `mecovqa` share.

`images/<modality>--<dataset>--<case>--<slice>.png`; a mask has `--<class>_<instance>` behind its image's name.
`SAMed2D_v1.json` maps images to masks, `SAMed2D_v1_class_mapping_id.json` names the classes of each dataset,
{dataset: {class: number}}. All lie in one folder, or in the zip file in parts as it is downloaded, read in place.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lightbox.errors import RequestError
from lightbox.readers.documents import parse_json
from lightbox.readers.json_pairs import file_chunks, read_pairs
from lightbox.readers.masked_cases import check_name
from lightbox.readers.masks import MaskError
from lightbox.readers.members import is_there
from lightbox.readers.pixels import PartPath
from lightbox.readers.rows import RowError, shown
from lightbox.readers.split_zip import Archive, open_parts

MASK_LIST, CLASS_LIST = "SAMed2D_v1.json", "SAMed2D_v1_class_mapping_id.json"
FOLDER = "SAMed2Dv1"
MODALITIES = {
    "ct": "CT",
    "mr": "MR",
    "pet": "PET",
    "us": "ultrasound",
    "ultrasound": "ultrasound",
    "x": "X-ray",
    "xray": "X-ray",
    "oct": "OCT",
}
"""Modality by the beginning of a name; the others are called as they are."""
_MASK = re.compile(r"(\d{1,6})_(\d{1,6}|merged)")


class SliceName(NamedTuple):
    """What the name of an image says."""

    modality: str
    dataset: str
    case: str

    @property
    def patient(self) -> str:
        """Cases are numbered by dataset."""
        return f"{self.dataset}--{self.case}"


class MaskName(NamedTuple):
    """What the name of a mask says: the image's stem, the number of the class, the instance or "merged"."""

    image: str
    number: int
    instance: str


def slice_name(stem: str, field_name: str) -> SliceName:
    """Take the stem of an image's name apart; a name of another form is a `RowError`."""
    parts = stem.split("--")
    if len(parts) < 3 or not all(part.strip() for part in parts):
        raise RowError(field_name, f"is {shown(stem)}, and not <modality>--<dataset>--<case>--<slice>")
    kind = parts[0].split("_")[0].lower()
    # a case may hold the sign that separates; the slice is the last part, and a set of single images has none
    return SliceName(MODALITIES.get(kind, kind), parts[1], "--".join(parts[2:-1]) or parts[2])


def mask_name(stem: str, field_name: str) -> MaskName:
    """Take the stem of a mask's name apart; a name of another form is a `RowError`."""
    image, _, end = stem.rpartition("--")
    match = _MASK.fullmatch(end)
    if match is None or not image:
        raise RowError(field_name, f"is {shown(stem)}, and not <image>--<class>_<instance>")
    return MaskName(image, int(match[1]), match[2])


def is_instance(stem: str, of: MaskName) -> bool:
    """Whether a file is one instance of the image and class of a mask."""
    image, _, end = stem.rpartition("--")
    match = _MASK.fullmatch(end)
    return match is not None and (image, int(match[1])) == (of.image, of.number) and match[2].isdecimal()


@dataclass(frozen=True)
class Tree:
    """Where `images/` and `masks/` lie: a folder, or a folder inside of a zip file, which may come in parts."""

    root: Path
    archive: Archive | None = None
    prefix: str = ""

    def path(self, name: str) -> Path:
        """The path of `images/x.png` or `masks/x.png`."""
        return self.root / name if self.archive is None else PartPath(self.root, self.prefix + name)

    def has(self, name: str) -> bool:
        """Whether anything of this name is there; what stands in the place of a file is refused when it is read."""
        return is_there(self.root / name) if self.archive is None else self.prefix + name in self.archive

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file, a piece at a time."""
        return file_chunks(self.root / name) if self.archive is None else self.archive.chunks(self.prefix + name)

    def names(self, folder: str) -> Iterator[str]:
        """Names of the files of a folder, in no order."""
        if self.archive is None:
            yield from (entry.name for entry in (self.root / folder).glob("*"))
            return
        start = f"{self.prefix}{folder}/"
        yield from (name.removeprefix(start) for name in self.archive.names() if name.startswith(start))


def find_tree(root: Path) -> Tree:
    """The first folder with `images/`, else the one zip file, below `root` or its `raw/`.

    Raises:
        RequestError: neither, several zip files, or parts of one without its last.
    """
    places = [root, root / FOLDER, root / "raw", root / "raw" / FOLDER]
    for place in places:
        if (place / "images").is_dir():
            return Tree(place)
    folders = [place for place in (root, root / "raw") if place.is_dir()]
    files = {file.with_suffix(".zip") for place in folders for file in (*place.glob("*.zip"), *place.glob("*.z01"))}
    if len(files) != 1:
        raise RequestError(
            f"'{root}' holds {len(files)} zip files and no images/",
            "Images and masks lie in folders, or in the one zip file in parts that was downloaded",
            "Name the folder that holds images/ and masks/, or SA-Med2D-16M.zip with its parts",
        )
    return zip_tree(files.pop())


def zip_tree(file: Path) -> Tree:
    """The tree inside a zip file; `file` is its last part."""
    archive = open_parts(file)
    prefix = next((top for top in (f"{FOLDER}/", "") if f"{top}{MASK_LIST}" in archive), None)
    if prefix is None:  # the lists are not in it, so the first image tells
        first = next((name for name in archive.names() if "images/" in name), "images/")
        prefix = first[: first.index("images/")]
    return Tree(file, archive, prefix)


def read_classes(tree: Tree) -> dict[tuple[str, int], str] | None:
    """Name of each class by dataset and number; None where the set came without that list.

    Raises:
        RequestError: the list is broken.
    """
    if not tree.has(CLASS_LIST):
        return None
    source = f"File '{tree.path(CLASS_LIST)}'"
    try:
        listed = parse_json(b"".join(tree.chunks(CLASS_LIST)).decode("utf-8-sig"))
    except ValueError as err:
        raise RequestError(source, f"It is not JSON: {err}", "Fetch the file again") from err
    classes: dict[tuple[str, int], str] = {}
    for dataset, names in listed.items() if isinstance(listed, dict) else ():
        for name, number in names.items() if isinstance(names, dict) else ():
            text = str(number)
            if text.isdecimal():
                try:
                    classes[dataset, int(text)] = check_name(name.removeprefix("union_").replace("_", " ").strip())
                except RowError as err:
                    raise RequestError(f"{source}, dataset {shown(dataset)}", str(err), "Correct the name") from err
    if not classes:
        raise RequestError(source, "It is no object of {dataset: {class: number}}", "Fetch the file again")
    return classes


def class_name(classes: Mapping[tuple[str, int], str] | None, dataset: str, number: int, file: str) -> str:
    """The name of a class; "class 12" where the set came without names.

    Raises:
        MaskError: there are names, and none for this number.
    """
    if classes is None:
        return f"class {number}"
    if (dataset, number) not in classes:
        raise MaskError(
            "masks_with_unknown_labels",
            "mask",
            f"is {file}, of class {number}, which {CLASS_LIST} does not name for {dataset}; what it marks is unknown; "
            "fetch both from one release",
        )
    return classes[dataset, number]


def masks_of_images(tree: Tree, stems: Collection[str]) -> dict[str, list[str]]:
    """Stems of the instance masks of some images, from `SAMed2D_v1.json`, or from the list of files without it."""
    masks: dict[str, list[str]] = defaultdict(list)
    if tree.has(MASK_LIST):
        for image, listed in read_pairs(tree.chunks(MASK_LIST), source=f"File '{tree.path(MASK_LIST)}'"):
            stem = PurePosixPath(image).stem
            if stem in stems and isinstance(listed, list):
                masks[stem] += [PurePosixPath(str(name)).stem for name in listed]
    else:
        for name in sorted(tree.names("masks")):
            stem = PurePosixPath(name).stem
            if stem.rpartition("--")[0] in stems:
                masks[stem.rpartition("--")[0]].append(stem)
    return dict(masks)
