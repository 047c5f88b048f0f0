"""Folders of images and masks, whoever's data: `images/` and `masks/`, or `<split>/images/` and `<split>/masks/`.

Three forms, told apart by what lies in `masks/` unless `form` says it:

* "value": one mask an image, `masks/<image>.png`, whose grey levels are classes. `labels.json` (class -> level) in the
  root, or the option `labels=1=liver,2=spleen`, names them; every class was looked for on every image.
* "folder": a folder a class, `masks/<class>/<image>.png`.
* "name": the class in the name, `masks/<image>_<class>.png`, and maybe a number behind it, `..._<class>_000.png`, for
  several instances. Where nothing follows the image's name, the class is the option `name`.

In the last two, nobody says which classes were looked for, so none is absent, and a mask that is black all over is a
fault: `blank=absent` reads it as the absence of its class. `patient` is a regular expression whose first group finds
the patient in an image's name; without it, patients are unknown.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.masked_cases import MaskedCases, MaskedImage, check_name, read_whole_object
from lightbox.readers.masks import MaskError, MaskPart, load_labels, part_mask
from lightbox.readers.members import check_folder, is_there
from lightbox.readers.pixels import SUFFIXES
from lightbox.readers.rows import Gathering
from lightbox.records import Case

FORMS = ("auto", "value", "folder", "name")
SPLITS = ("train", "validation", "test")
BLANK = ("fault", "absent")
_INSTANCE = re.compile(r"_\d+$")


def read_cases(
    root: Path,
    rows: Gathering,
    *,
    split: str | None = None,
    form: str = "auto",
    labels: str = "",
    name: str = "region",
    patient: str = "",
    blank: str = "fault",
) -> None:
    """Read folders of images and masks.

    Args:
        root: the folder that holds `images/`, or the folders of the splits.
        rows: where cases, problems and counts go.
        split: one of `SPLITS`; None reads all there are.
        form: see the module; "auto" looks.
        labels: of the form "value", LEVEL=CLASS separated by commas; "" takes `labels.json`.
        name: class of masks without one.
        patient: regular expression with a group.
        blank: "fault" or "absent", what a black mask means.

    Raises:
        RequestError: no such folder, an unknown form, levels that nothing names, or no valid expression.
    """
    for option, value, choices in (("form", form, FORMS), ("blank", blank, BLANK)):
        if value not in choices:
            raise RequestError(f"{option}='{value}'", f"It is one of {', '.join(choices)}", "Choose one of them")
    finder = _finder(patient)
    folders = [(part, root / part) for part in SPLITS if split in (None, part) and _has_images(root / part)]
    folders = folders or ([("", root)] if split is None and _has_images(root) else [])
    if not folders:
        raise RequestError(
            f"Images and masks at '{root}', split {split}",
            "There is no images/, and no train/images/, validation/images/ or test/images/",
            "Name the folder that holds them",
        )
    chosen = _form_of(folders[0][1] / "masks", folders[0][1] / "images") if form == "auto" else form
    levels = _levels(root, labels) if chosen == "value" else {}
    cases = MaskedCases(rows)
    for part, folder in folders:
        masks = _masks_of(folder / "masks", chosen)
        for path in _pictures(folder / "images"):
            image: MaskedImage | None = None
            with rows.row(path, "all", counter="images"):
                match = finder.search(path.stem) if finder else None
                case = Case(
                    id=path.stem, images=(path,), split=part, patient_id=match[1] if match and match.groups() else None
                )
                image = cases.image(case, "image")
            if image is not None:
                rows.counts["images_without_a_patient"] += bool(finder) and image.case.patient_id is None
                _read_masks(cases, image, masks, path, form=chosen, levels=levels, name=name, blank=blank)
        rows.counts["masks_without_an_image"] += sum(len(rest) for rest in masks.values())
    cases.finish(root, levels.values())


def _read_masks(
    cases: MaskedCases,
    image: MaskedImage,
    masks: dict[str, list[tuple[str, Path]]],
    path: Path,
    *,
    form: str,
    levels: Mapping[int, str],
    name: str,
    blank: str,
) -> None:
    """Add every mask of one image, and take them out of `masks`."""
    if form == "name":  # the longest name wins: a_1_liver.png is of a_1 and not of a
        own = [(class_name, file) for class_name, file in masks.pop(path.stem, [])]
    else:
        own = masks.pop(path.stem, [])
    if not own:
        cases.rows.counts["images_without_a_mask"] += 1
        image.is_whole = False
        return
    for class_name, file in own:
        if form == "value":
            with cases.row(image, file, "all"):
                _read_levels(cases, image, file, levels)
            continue
        with cases.row(image, file, "all"):
            label = check_name(class_name or name)
            try:
                cases.mark(image, label, MaskPart(file))
            except MaskError as err:
                if err.check != "empty_masks" or blank == "fault":
                    raise
                image.absent.add(label)


def _read_levels(cases: MaskedCases, image: MaskedImage, file: Path, levels: Mapping[int, str]) -> None:
    """Add every class of a mask whose levels are classes; one without any says that all are absent."""
    known = frozenset(levels) | {0}
    present = set(load_labels(file).ravel().tolist())
    for level in sorted(present & levels.keys()):
        cases.mark(image, levels[level], MaskPart(file, (level,), labels=known))
    if not present & levels.keys():
        if present - {0}:
            part_mask(MaskPart(file, tuple(levels), labels=known), image.size_wh)  # says which labels nobody named
        width, height = image.size_wh
        if load_labels(file).shape != (height, width):
            part_mask(MaskPart(file), image.size_wh)


def _levels(root: Path, labels: str) -> dict[int, str]:
    """Class by grey level, from the option or from `labels.json`."""
    if labels:
        pairs = [(level, name) for level, _, name in (entry.partition("=") for entry in labels.split(","))]
    elif is_there(root / "labels.json"):
        pairs = [(str(level), str(name)) for name, level in read_whole_object(root / "labels.json").items()]
        pairs = [(name, level) if name.isdecimal() else (level, name) for level, name in pairs]  # either way round
    else:
        raise RequestError(
            f"Masks at '{root}' whose grey levels are classes",
            "Nothing names the levels: there is no labels.json",
            "Write labels.json as {class: level}, or give the option labels=1=liver,2=spleen",
        )
    levels = {int(level): name.strip() for level, name in pairs if level.strip().isdecimal() and name.strip()}
    if len(levels) != len(pairs) or 0 in levels or len(set(levels.values())) != len(levels):
        raise RequestError(
            f"labels {dict(pairs)!r:.80} of '{root}'",
            "A level is a whole number from 1 (0 is background), and each class and each level stands once",
            "Write for example labels=1=liver,2=spleen",
        )
    return levels


def _has_images(folder: Path) -> bool:
    """Whether there are images; what stands in the place of one of its folders is refused and not passed over."""
    check_folder(folder)
    check_folder(folder / "masks")
    return check_folder(folder / "images").is_dir()


def _finder(patient: str) -> re.Pattern[str] | None:
    if not patient:
        return None
    try:
        finder = re.compile(patient)
    except re.error as err:
        raise RequestError(f"patient='{patient}'", f"It is no regular expression: {err}", "Correct it") from err
    if not finder.groups:
        raise RequestError(f"patient='{patient}'", "It has no group", r"Write for example patient=^(P\d+)_")
    return finder


def _form_of(masks: Path, images: Path) -> str:
    """The form that the first masks have: a folder a class, a class in the name, or levels."""
    if any(entry.is_dir() for entry in masks.glob("*")):
        return "folder"
    stems = {path.stem for path in _pictures(images)}
    named = [path.stem for path in _pictures(masks)]
    return "value" if named and all(stem in stems for stem in named) else "name"


def _masks_of(folder: Path, form: str) -> dict[str, list[tuple[str, Path]]]:
    """(class, file) of every mask by the name of its image; the class is "" where nothing says it."""
    images = {path.stem for path in _pictures(folder.parent / "images")}
    masks: dict[str, list[tuple[str, Path]]] = {}
    if form == "folder":
        for place in sorted(entry for entry in folder.glob("*") if entry.is_dir()):
            for path in _pictures(place):
                masks.setdefault(path.stem, []).append((place.name, path))
        return masks
    for path in _pictures(folder):
        # of all beginnings that are images the longest: p_1_liver.png is of p_1 and not of p
        parts = path.stem.split("_")
        ends = [end for end in range(len(parts), 0, -1) if "_".join(parts[:end]) in images]
        stem = "_".join(parts[: ends[0]]) if ends and form == "name" else path.stem
        rest = _INSTANCE.sub("", path.stem[len(stem) :]).strip("_")
        masks.setdefault(stem, []).append((rest.replace("_", " "), path))
    return masks


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES)
