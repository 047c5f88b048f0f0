"""SLAKE: bilingual questions, with boxes and masks per image.

Official layout: `train.json`, `validate.json` (or `validation.json`), `test.json` beside `imgs/xmlab<k>/{source.jpg,
mask.png, detection.json, question.json}`. A folder with image folders only is read from their `question.json` (no
split). A folder with question files only is read as text: its cases hold no image. `imgs.zip`, as BoKelvin/SLAKE
publishes it, is read in place. mdwiratathya/SLAKE-vqa-english is read as parquet, see `shards`: image, question and
answer of the English rows, and nothing else. `detection.json` is a list of
``{label: [left, top, width, height]}`` in pixels. `mask.png` paints each region in one grey level on black; a region
takes the name of the box that it fills, since the boxes were drawn around the regions. Patients are unknown.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.images import load_image
from lightbox.readers.members import is_there
from lightbox.readers.rows import (
    Gathering,
    RowError,
    as_row,
    clean_text,
    inside,
    is_finite,
    make_question,
    shown,
    text_field,
)
from lightbox.readers.shards import find_shards, read_shards
from lightbox.readers.stores import ImageStore, find_store, image_fault, image_size_wh
from lightbox.records import Box, Case, Finding, box_from_mask, box_from_xywh_px, box_iou, check_box

LANGUAGES = ("en", "zh", "all")
SAME_REGION_IOU = 0.9  # a box and its region agree up to their edges
_PNG_HEAD = 25  # up to the byte that says how many bits a sample has
_OPTIONAL = ("qid", "q_lang", "content_type", "base_type", "triple", "answer_type", "modality", "location")
_FILES = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}


def read_cases(
    root: Path, rows: Gathering, *, split: str | None = None, language: str = "en", use_masks: bool = False
) -> None:
    """Read SLAKE below `root`.

    Args:
        root: folder of the dataset, in one of the layouts above.
        rows: where cases, problems and counts go.
        split: "train", "validation", "test", or None for all.
        language: "en", "zh" or "all"; the rows left out are counted as `rows_of_other_languages`.
        use_masks: also load `mask.png`, one finding per grey level (about 0.3 GB for the whole set).

    Raises:
        RequestError: no question file, or an unreadable one; an unknown language; Chinese or masks asked of parquet.
    """
    if language not in LANGUAGES:
        raise RequestError(f"language='{language}'", f"The choices are {', '.join(LANGUAGES)}", "Choose one of them")
    store = find_store(root, rows, folders=("imgs", "images"), zips=("imgs.zip",))
    # question files travel without the images, and text alone is of use
    has_images = store.is_zip or any(store.root.glob("xmlab*"))
    files = _files(root, store.root, split)
    if files[0][0].suffix == ".parquet":
        if language == "zh" or use_masks:
            raise RequestError(
                f"language='{language}', use_masks={use_masks} for SLAKE as parquet",
                "That form holds the English questions and no masks",
                "Leave both out, or fetch BoKelvin/SLAKE",
            )
        read_shards(files, rows, title="SLAKE")
        return
    for file, name in files:
        for number, value in enumerate(read_json(file, list), start=1):
            with rows.row(file, number):
                _add(rows, value, store if has_images else None, name, language, number)
    for case in rows.cases if has_images else ():
        image = case.images[0]
        assert isinstance(image, Path)
        folder = image.parent
        has_boxes, has_mask = (is_there(folder / name) for name in ("detection.json", "mask.png"))
        # said, not refused: where a set comes without them, its questions can be read all the same
        rows.counts["images_without_boxes"] += not has_boxes
        findings = _boxes(folder, rows) if has_boxes else []
        rows.counts["images_without_masks"] += use_masks and not has_mask
        if use_masks and has_mask:
            with rows.row(folder / "mask.png", case.id, counter="masks"):
                findings = _with_masks(findings, folder)
        rows.add_findings(case, findings)


def _files(root: Path, images: Path, split: str | None) -> list[tuple[Path, str]]:
    names_by_split = _FILES if split is None else {split: _FILES[split]}
    files = [(root / file, name) for name, names in names_by_split.items() for file in names if is_there(root / file)]
    if not files and split is None:
        folders = sorted(images.glob("xmlab*"))
        # what stands in the place of a folder is read too, so that it is refused
        is_odd = {folder: not folder.is_dir() and not folder.suffix for folder in folders}
        files = [(file, "") for f in folders if is_there(file := f / "question.json") or is_odd[f]]
    files = files or find_shards(root, tuple(names_by_split))
    if files:
        return files
    raise RequestError(
        f"SLAKE at '{root}'" + (f", split '{split}'" if split else ""),
        f"There is no {' or '.join(names[0] for names in names_by_split.values())}"
        + ("" if split else ", no xmlab*/question.json")
        + " and no parquet file of that kind",
        "Name the folder that holds them with --root",
    )


def _add(rows: Gathering, value: object, store: ImageStore | None, split: str, language: str, number: int) -> None:
    row = as_row(value)
    rows.note_optional(row, _OPTIONAL)
    spoken = text_field(row, "q_lang", default="en")
    if language not in ("all", spoken):
        rows.counts["rows_of_other_languages"] += 1
        return
    case_id = text_field(row, "img_id")
    name = text_field(row, "img_name")
    path = inside(Path(), name, "img_name") if store is None else store.path(name, "img_name")
    question = make_question(
        text_field(row, "qid", default="") or f"{case_id}-{number}",  # the files per image have no qid
        text_field(row, "question"),
        text_field(row, "answer"),
        kind=text_field(row, "content_type", default="") or text_field(row, "base_type", default=""),
        facts=_facts(row),
        language=spoken,
    )
    source_closed = text_field(row, "answer_type", default="").upper() == "CLOSED"
    if source_closed != question.is_closed:
        rows.counts["closed_without_options" if source_closed else "yes_no_marked_open"] += 1
    case = Case(
        id=case_id,
        images=() if store is None else (path,),
        modality=text_field(row, "modality", default=""),
        body_part=text_field(row, "location", default=""),
        split=split,
    )
    rows.add(case, question)


def _facts(row: Mapping[str, object]) -> tuple[str, ...]:
    """The knowledge triple of a `kvqa` row as one fact; a `vqa` row has a placeholder there."""
    triple = row.get("triple")
    if text_field(row, "base_type", default="") != "kvqa" or triple is None:
        return ()
    if not isinstance(triple, list) or len(triple) != 3:
        raise RowError("triple", f"is {shown(triple)}, not a list of three texts")
    return (" | ".join(text_field({"triple": part}, "triple") for part in triple),)


def _boxes(folder: Path, rows: Gathering) -> list[Finding]:
    file, findings = folder / "detection.json", []
    entries: list = []
    with rows.row(file, "all", counter="box_files"):
        entries = read_json(file, list, may_be_empty=True)  # an image on which nothing was marked
    image_wh = None
    for number, value in enumerate(entries, start=1):
        with rows.row(file, number, counter="boxes"):
            image_wh = image_wh or _size_wh(folder)
            found = [
                Finding(clean_text(name, "label"), boxes=(_box(xywh, image_wh, name),))
                for name, xywh in as_row(value).items()
            ]
            if not found:
                raise RowError("row", "is an object without a box")
            rows.counts["repeated_boxes"] += sum(finding in findings for finding in found)
            findings += found
    return findings


def _box(xywh: Any, image_wh: tuple[int, int], name: str) -> Box:
    if not isinstance(xywh, list) or len(xywh) != 4 or not all(is_finite(v) for v in xywh):
        raise RowError(name, f"is {shown(xywh)}, not left, top, width, height in pixels")
    # floats add up to infinity where integers of 300 digits would not divide
    box = box_from_xywh_px(*(float(v) for v in xywh), image_wh=image_wh)
    try:
        return check_box(box, where=name)
    except RequestError as err:
        raise RowError(name, f"is {shown(xywh)}, which is not a box inside an image of {image_wh} pixels") from err


def _size_wh(folder: Path) -> tuple[int, int]:
    for name in ("source.jpg", "mask.png"):
        if (folder / name).is_file():
            return image_size_wh(folder / name)
    raise RowError("source.jpg", "is missing, so the box cannot be turned into fractions of the image")


def _with_masks(findings: list[Finding], folder: Path) -> list[Finding]:
    """Give each region of `mask.png` to the finding whose box it fills; one without a box is a finding of its own."""
    levels = load_image(folder / "mask.png")
    if fault := image_fault(folder / "mask.png"):
        raise RowError("mask.png", f"is damaged: {fault}")
    with (folder / "mask.png").open("rb") as file:
        head = file.read(_PNG_HEAD)
    if not head.startswith(b"\x89PNG") or head[-1] > 8:  # JPEG paints new levels around a region, 16 bits are scaled
        raise RowError("mask.png", "is no PNG of 8 bits, so its levels are not what was painted")
    if (folder / "source.jpg").is_file() and levels.shape[::-1] != image_size_wh(folder / "source.jpg"):
        raise RowError("mask.png", f"has {levels.shape[::-1]} pixels, the image {image_size_wh(folder / 'source.jpg')}")
    named = list(findings)
    for level in np.unique(levels[levels > 0]):
        mask = levels == level
        box = box_from_mask(mask)
        # a box takes one region: two organs may fill like boxes
        ious = [box_iou(box, finding.boxes[0]) if finding.mask is None else 0.0 for finding in named]
        best = int(np.argmax(ious)) if ious else 0
        if ious and ious[best] >= SAME_REGION_IOU:
            named[best] = dataclasses.replace(named[best], mask=mask)
        else:
            named.append(Finding(f"unnamed region {level}", boxes=(box,), mask=mask))
    return named
