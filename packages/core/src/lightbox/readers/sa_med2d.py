"""SA-Med2D-20M, whose redistributed part is SA-Med2D-16M, and the demonstration set of SAM-Med2D.

Names, lists and folders are in `sa_med2d_files`. A patient is <dataset>--<case>; where a source counts visits or frames
as cases, as ACDC does, one patient has several, so patients are partly known. Masks are not decoded here: there are 16
million. `mask_audit.with_sound_masks` decodes those of the cases that were read. Not seen: the whole set; names and
layout are of the papers' dossier and of public code that reads it.

The demonstration set: `data_demo/image2label_train.json` (image -> masks) and `label2image_test.json` (mask -> image)
list the same images, and `<image>_<class>_<number>.png` is a mask. Seen: 3 of its images.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.json_pairs import read_pairs
from lightbox.readers.masked_cases import MaskedCases, MaskedImage, count_faults
from lightbox.readers.masks import MaskedFinding, MaskError, MaskPart
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, case_id_of, inside, shown
from lightbox.readers.sa_med2d_files import (
    MASK_LIST,
    Tree,
    class_name,
    find_tree,
    mask_name,
    read_classes,
    slice_name,
)
from lightbox.records import Case

_DEMO_MASK = re.compile(r"(.+)_(\d+)")


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
    file, seen = tree.path(MASK_LIST), set[str]()
    for number, (image, masks) in enumerate(read_pairs(tree.chunks(MASK_LIST), source=f"File '{file}'"), start=1):
        stem = PurePosixPath(image).stem
        if not stem.startswith(modality) or wanted and not wanted.intersection(stem.split("--")[1:2]):
            rows.counts["images_not_asked_for"] += 1
            continue
        with rows.row(file, number, counter="images"):
            name = slice_name(stem, "image")
            if stem in seen:
                raise RowError("image", f"is {shown(stem)}, as in a row before; the first is kept")
            seen.add(stem)
            path = tree.path(inside(Path(), image, "image").as_posix())
            case = Case(id=stem, images=(path,), modality=name.modality, patient_id=name.patient)
            rows.add(case)
            if not isinstance(masks, list):
                raise RowError("masks", f"is {shown(masks)}, not a list of names")
            by_class = _by_class(rows, file, number, stem, masks, name.dataset, classes, tree)
            rows.add_findings(case, (_instances(stem, name, parts) for name, parts in by_class.items()))
        if 0 < most <= len(seen):
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
    if not any(is_there(file) for file in lists.values()):
        raise RequestError(
            f"'{root}'", "There is no image2label_train.json or label2image_test.json", "Name its folder"
        )
    cases = MaskedCases(rows, modality="CT")
    listed: set[Path] = set()
    for part, file in lists.items():
        if split not in (None, part) or not is_there(file):
            continue
        listed_rows = read_json(file, dict)
        for key, _ in listed_rows.repeated:
            with rows.row(file, str(key), counter="repeated_keys"):
                raise RowError("row", "stands twice in one object; the first is kept")
        for number, (image_name, masks) in enumerate(_demo_rows(listed_rows, part), start=1):
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
