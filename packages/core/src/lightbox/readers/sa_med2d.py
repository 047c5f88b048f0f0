"""SA-Med2D-20M, whose redistributed part is SA-Med2D-16M, and the demonstration set of SAM-Med2D.

Names say everything: `images/<modality>--<dataset>--<case>--<slice>.png`, and a mask has `--<class>_<instance>` behind
its image's name. `SAMed2D_v1.json` maps images to masks, `SAMed2D_v1_class_mapping_id.json` names the classes of each
dataset, {dataset: {class: number}}. Both lie beside `images/` and `masks/`, in a folder or in the zip file in parts as it
is downloaded, which is read in place (`split_zip`). A patient is <dataset>--<case>; where a source counts visits or
frames as cases, as ACDC does, one patient has several, so "partly known".

Masks are not decoded here: there are 16 million. `mask_audit.with_sound_masks` decodes those of the cases that were
read. Not seen: the whole set; names and layout are of the papers' dossier and of public code that reads it.

The demonstration set: `data_demo/image2label_train.json` (image -> masks) and `label2image_test.json` (mask -> image)
list the same images, and `<image>_<class>_<number>.png` is a mask. Seen: 3 of its images.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lightbox.errors import RequestError
from lightbox.readers.documents import parse_json, read_json
from lightbox.readers.json_pairs import file_chunks, read_pairs
from lightbox.readers.masked_cases import MaskedCases, MaskedImage, check_name, count_faults
from lightbox.readers.masks import MaskedFinding, MaskError, MaskPart
from lightbox.readers.pixels import PartPath
from lightbox.readers.rows import Gathering, RowError, case_id_of, inside, shown
from lightbox.readers.split_zip import Archive, open_parts
from lightbox.records import Case

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
_DEMO_MASK = re.compile(r"(.+)_(\d+)")


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
        """Whether a file of this name is there."""
        return (self.root / name).is_file() if self.archive is None else self.prefix + name in self.archive

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
                classes[dataset, int(text)] = check_name(name.removeprefix("union_").replace("_", " ").strip())
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


def read_cases(
    root: Path,
    rows: Gathering,
    *,
    split: str | None = None,
    datasets: str = "",
    modality: str = "",
    n_cases: int | str = 0,
) -> None:
    """Read SA-Med2D-20M, or a part of it: all of it takes some 10 GB of memory.

    Args:
        root: folder with `images/`, with `SAMed2Dv1/`, or with the zip file and its parts.
        rows: where cases, problems and counts go.
        split: None; the set has none.
        datasets: names of source datasets, separated by commas; "" reads all.
        modality: beginning of the names, such as ct; "" reads all.
        n_cases: most images to read, in the order of the list; 0 reads all.

    Raises:
        RequestError: no folder or zip file, a part of it missing, or a broken list.
    """
    if not str(n_cases).isdecimal():
        raise RequestError(f"n_cases={n_cases}", "It is a whole number of images, 0 for all", "Correct it")
    tree, wanted, most = find_tree(root), {*filter(None, datasets.split(","))}, int(n_cases)
    classes = read_classes(tree)
    if not tree.has(MASK_LIST):
        raise RequestError(
            f"SA-Med2D at '{tree.root}'", f"There is no {MASK_LIST} beside images/", "Fetch it too; it pairs the files"
        )
    file, count = tree.path(MASK_LIST), 0
    for number, (image, masks) in enumerate(read_pairs(tree.chunks(MASK_LIST), source=f"File '{file}'"), start=1):
        stem = PurePosixPath(image).stem
        if not stem.startswith(modality) or wanted and not wanted.intersection(stem.split("--")[1:2]):
            rows.counts["images_not_asked_for"] += 1
            continue
        with rows.row(file, number, counter="images"):
            name = slice_name(stem, "image")
            path = tree.path(inside(Path(), image, "image").as_posix())
            case = Case(id=stem, images=(path,), modality=name.modality, patient_id=name.patient)
            rows.add(case)
            count += 1
            if not isinstance(masks, list):
                raise RowError("masks", f"is {shown(masks)}, not a list of names")
            by_class = _by_class(rows, file, number, stem, masks, name.dataset, classes, tree)
            rows.add_findings(case, (_instances(stem, name, parts) for name, parts in by_class.items()))
        if 0 < most <= count:
            break


def _by_class(
    rows: Gathering,
    file: Path,
    number: int,
    stem: str,
    masks: list[object],
    dataset: str,
    classes: Mapping[tuple[str, int], str] | None,
    tree: Tree,
) -> dict[str, list[MaskPart]]:
    by_class: dict[str, list[MaskPart]] = defaultdict(list)
    for entry in masks:
        with rows.row(file, number, counter="masks"), count_faults(rows):
            path = inside(Path(), str(entry), "masks")
            mask = mask_name(path.stem, "masks")
            if mask.image != stem:
                reason = f"is {path.name}, a mask of another image than {stem}; one of them is a mistake; drop the row"
                raise MaskError("masks_of_another_image", "masks", reason)
            name = class_name(classes, dataset, mask.number, path.name)
            by_class[name].append(MaskPart(tree.path(path.as_posix())))
    return by_class


def _instances(stem: str, name: str, parts: Iterable[MaskPart]) -> MaskedFinding:
    return MaskedFinding(name, parts=tuple(parts), id=f"{stem} {name}")


def read_demo(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the demonstration set of SAM-Med2D: "train" and "test" list the same images, as published.

    Raises:
        RequestError: neither of the two lists is there, or one is broken.
    """
    base = root / "data_demo" if (root / "data_demo").is_dir() else root
    lists = {"train": base / "image2label_train.json", "test": base / "label2image_test.json"}
    if not any(file.exists() for file in lists.values()):
        raise RequestError(
            f"'{root}'", "There is no image2label_train.json or label2image_test.json", "Name its folder"
        )
    cases = MaskedCases(rows, modality="CT")
    listed: set[Path] = set()
    for part, file in lists.items():
        if split not in (None, part) or not file.exists():
            continue
        for number, (image_name, masks) in enumerate(_demo_rows(read_json(file, dict), part), start=1):
            image: MaskedImage | None = None
            with rows.row(file, number, counter="images"):
                path = _demo_path(base, image_name, "image")
                listed.add(path)
                patient = _DEMO_MASK.fullmatch(path.stem)  # amos_0006_90 is slice 90 of volume amos_0006
                case = Case(id=case_id_of(path.name), images=(path,), split=part, patient_id=patient and patient[1])
                image = cases.image(case, "image")
            for entry in masks if image else ():
                with cases.row(image, file, number):
                    mask = _demo_path(base, entry, "mask")
                    match = _DEMO_MASK.fullmatch(mask.stem.removeprefix(f"{path.stem}_"))
                    if match is None or not mask.stem.startswith(f"{path.stem}_"):
                        reason = f"is {mask.name}, no mask of {path.name}, by its name; one is a mistake; drop the row"
                        raise MaskError("masks_of_another_image", "mask", reason)
                    cases.mark(image, match[1].replace("_", " "), MaskPart(mask))
    rows.counts["images_in_no_list"] += len({*(base / "images").glob("*.png")} - listed)
    cases.finish(base)


def _demo_rows(listed: Mapping[str, object], part: str) -> Iterator[tuple[str, list[object]]]:
    """(image, its masks) of either list."""
    if part == "train":
        for image, masks in listed.items():
            yield image, masks if isinstance(masks, list) else [masks]
        return
    by_image: dict[str, list[object]] = defaultdict(list)
    for mask, image in listed.items():
        by_image[str(image)].append(mask)
    yield from by_image.items()


def _demo_path(base: Path, name: object, field_name: str) -> Path:
    """Names begin with the folder that the lists lie in."""
    if not isinstance(name, str):
        raise RowError(field_name, f"is {shown(name)}, no name")
    return inside(base, name.removeprefix(f"{base.name}/").removeprefix("data_demo/"), field_name)
