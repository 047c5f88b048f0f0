"""Small sets in every form that the readers of boxes take, written by hand or cut from real data.

Each has four pictures, with one to three boxes of two classes in most of them.
"""

import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lightbox.testing.spoiled.small import PICTURES, Draw, SmallSet, dicom_bytes, put, table

CLASSES = ("cell", "dust")
CHEST = ("Mass", "Nodule")
CHEST_PX, LEAST_PX = 1024, 8


class Marked(NamedTuple):
    """A picture and its boxes: class number, left, top, right and bottom in pixels."""

    stem: str
    content: bytes
    width: int
    height: int
    boxes: list[tuple[int, int, int, int, int]]


def _marked(draw: Draw, rng: random.Random, ending: str) -> Iterator[Marked]:
    for place in range(PICTURES):
        content, (width, height) = b"", (0, 0)
        while min(width, height) < LEAST_PX:
            content = draw(ending)
            width, height = Image.open(io.BytesIO(content)).size
        boxes = [_box(rng, width, height) for _ in range(place)]  # none in the first
        yield Marked(f"p{place}", content, width, height, boxes)


def _box(rng: random.Random, width: int, height: int) -> tuple[int, int, int, int, int]:
    left, top = rng.randrange(width - 4), rng.randrange(height - 4)
    return rng.randrange(2), left, top, rng.randint(left + 3, width), rng.randint(top + 3, height)


def _coco(folder: Path, rng: random.Random, draw: Draw) -> None:
    for split in ("train", "test"):
        images, annotations = [], []
        for number, one in enumerate(_marked(draw, rng, ".png")):
            name = f"{split}{number}.png"
            put(folder / "images" / name, one.content)
            images.append({"id": number, "file_name": name, "width": one.width, "height": one.height})
            for kind, left, top, right, bottom in one.boxes:
                box = [left, top, right - left, bottom - top]
                row = {"id": len(annotations), "image_id": number, "category_id": kind, "bbox": box, "iscrowd": 0}
                annotations.append(row)
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        put(folder / f"instances_{split}.json", content)


def _voc(folder: Path, rng: random.Random, draw: Draw) -> None:
    for one in _marked(draw, rng, ".jpg"):
        objects = "".join(
            f"<object>\n<name>{CLASSES[kind]}</name>\n<bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>\n</object>\n"
            for kind, left, top, right, bottom in one.boxes
        )
        size = f"<size><width>{one.width}</width><height>{one.height}</height><depth>3</depth></size>"
        text = f"<annotation>\n<filename>{one.stem}.jpg</filename>\n{size}\n{objects}</annotation>\n"
        put(folder / "Annotations" / f"{one.stem}.xml", text)
        put(folder / "JPEGImages" / f"{one.stem}.jpg", one.content)
    put(folder / "ImageSets" / "Main" / "train.txt", "p0\np1\np2\n")
    put(folder / "ImageSets" / "Main" / "test.txt", "p3\n")


def _cvat(folder: Path, rng: random.Random, draw: Draw) -> None:
    images = []
    for number, one in enumerate(_marked(draw, rng, ".png")):
        put(folder / "images" / f"{one.stem}.png", one.content)
        boxes = "".join(
            f'<box label="{CLASSES[kind]}" xtl="{left}.0" ytl="{top}.0" xbr="{right}.0" ybr="{bottom}.0"/>\n'
            for kind, left, top, right, bottom in one.boxes
        )
        size = f'width="{one.width}" height="{one.height}"'
        images.append(f'<image id="{number}" name="{one.stem}.png" {size}>\n{boxes}</image>\n')
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><task><labels>{labels}</labels></task></meta>\n"
    put(folder / "annotations.xml", f"<annotations>\n<version>1.1</version>\n{meta}{''.join(images)}</annotations>\n")


def _yolo(folder: Path, rng: random.Random, draw: Draw) -> None:
    for split in ("train", "test"):
        for one in _marked(draw, rng, ".png"):
            put(folder / split / "images" / f"{split}{one.stem}.png", one.content)
            lines = [
                f"{kind} {(x0 + x1) / 2 / one.width:.6f} {(y0 + y1) / 2 / one.height:.6f} "
                f"{(x1 - x0) / one.width:.6f} {(y1 - y0) / one.height:.6f}\n"
                for kind, x0, y0, x1, y1 in one.boxes
            ]
            put(folder / split / "labels" / f"{split}{one.stem}.txt", "".join(lines))
    put(folder / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def _kitti(folder: Path, rng: random.Random, draw: Draw) -> None:
    for one in _marked(draw, rng, ".png"):
        put(folder / "images" / f"{one.stem}.png", one.content)
        lines = [
            f"{CLASSES[kind]} 0 0 0 {left} {top} {right} {bottom} 0 0 0 0 0 0 0\n"
            for kind, left, top, right, bottom in one.boxes
        ]
        put(folder / "labels" / f"{one.stem}.txt", "".join(lines))


def _vindr(folder: Path, rng: random.Random, _: Draw) -> None:
    for split in ("train", "test"):
        rows = []
        for place in range(PICTURES):
            pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 4095, (16, 20)).astype(np.uint16)
            put(folder / split / f"{split}{place}.dicom", dicom_bytes(pixels))
            boxes = [_box(rng, 20, 16) for _ in range(place)]
            readers = [f"R{1 + number}" for number in range(len(boxes))] if split == "train" else []
            for number, (kind, *edges) in enumerate(boxes):
                reader = readers[number : number + 1]
                rows.append([f"{split}{place}", *reader, CHEST[kind], *map(str, edges)])
            if not boxes:
                rows.append([f"{split}{place}", *(["R1"] if split == "train" else []), "No finding", *[""] * 4])
        header = [
            "image_id",
            *(["rad_id"] if split == "train" else []),
            "class_name",
            "x_min",
            "y_min",
            "x_max",
            "y_max",
        ]
        table(folder / "annotations" / f"annotations_{split}.csv", header, rows)


def _padchest(folder: Path, rng: random.Random, draw: Draw) -> None:
    studies, rows = [], []
    for place in range(PICTURES):
        put(folder / f"s{place}.png", draw(".png"))
        found = [
            {
                "sentence_en": f"Finding {number}.",
                "sentence_es": f"Hallazgo {number}.",
                "abnormal": True,
                "labels": [CHEST[number % 2].lower()],
                "boxes": [[round(rng.uniform(0, 0.4), 3), 0.1, round(rng.uniform(0.5, 1), 3), 0.9]],
                "extra_boxes": [],
                "locations": ["left lung"],
                "progression": None,
            }
            for number in range(place)
        ]
        clear = [{"sentence_en": "Clear.", "sentence_es": "Normal.", "abnormal": False, "labels": [], "boxes": []}]
        studies.append({"StudyID": f"s{place}", "ImageID": f"s{place}.png", "findings": found or clear})
        rows += [[f"s{place}.png", "test" if place == 1 else "train", CHEST[0].lower(), "mass", f"patient {place}"]]
    put(folder / "grounded_reports_20240819.json", studies)
    table(folder / "master_table.csv", ["ImageID", "split", "label", "label_group", "PatientID"], rows)


def _ms_cxr(folder: Path, rng: random.Random, _: Draw) -> None:
    header = [
        "dicom_id",
        "category_name",
        "label_text",
        "path",
        "x",
        "y",
        "w",
        "h",
        "image_width",
        "image_height",
        "split",
    ]
    rows = []
    for place in range(PICTURES):
        for number in range(place):
            left, top, right, bottom = _box(rng, 100, 50)[1:]
            box = [left, top, right - left, bottom - top, 100, 50]
            path = f"files/p10/p1000000{place}/s1/d{place}.jpg"
            split = ("train", "val", "test")[place - 1]
            rows.append([f"d{place}", CHEST[number % 2], f"haze {number}", path, *map(str, box), split])
    table(folder / "MS_CXR_Local_Alignment_v1.1.0.csv", header, rows)


def _chest_rows(rng: random.Random, split: str = "") -> Iterator[dict]:
    for place in range(PICTURES):
        boxes = [_box(rng, CHEST_PX, CHEST_PX) for _ in range(place)]
        syms = [CHEST[kind] for kind, *_ in boxes]
        yield {
            "file_name": f"{split}{place}.png",
            "syms": syms,
            "boxes": [edges for _, *edges in boxes],
            "polygons": [],
        }


def _chest_json(folder: Path, rng: random.Random, _: Draw) -> None:
    for split in ("train", "test"):
        put(folder / f"ChestX_Det_{split}.json", list(_chest_rows(rng, split)))


def _chest_parquet(folder: Path, rng: random.Random, draw: Draw) -> None:
    rows = [
        {"image": {"bytes": draw(".png"), "path": row["file_name"]}, "annotation_json": json.dumps(row)}
        for row in _chest_rows(rng)
    ]
    put(folder / "train-00000.parquet", b"")
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet")


def _nih(folder: Path, rng: random.Random, _: Draw) -> None:
    boxes, labels = [], []
    for place in range(PICTURES):
        name = f"0000000{place}_000.png"
        kinds = set()
        for _number in range(place):
            kind, left, top, right, bottom = _box(rng, CHEST_PX, CHEST_PX)
            boxes.append([name, CHEST[kind], *map(str, (left, top, right - left, bottom - top)), "", "", ""])
            kinds.add(CHEST[kind])
        labels.append([name, "|".join(sorted(kinds)) or "No Finding"])
    table(folder / "BBox_List_2017.csv", ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""], boxes)
    table(folder / "Data_Entry_2017.csv", ["Image Index", "Finding Labels"], labels)


def _masks(folder: Path, rng: random.Random, draw: Draw) -> None:
    rows = []
    for one in _marked(draw, rng, ".png"):
        put(folder / "images" / f"{one.stem}.png", one.content)
        for number, (_, left, top, right, bottom) in enumerate(one.boxes):
            mask = np.zeros((one.height, one.width), np.uint8)
            mask[top:bottom, left:right] = 255
            stream = io.BytesIO()
            Image.fromarray(mask).save(stream, "PNG")
            name = f"{one.stem}m{number}.png"
            put(folder / name, stream.getvalue())
            frame = [f"{one.width}x{one.height}", "0", "0", str(one.width), str(one.height)]
            rows.append([f"Lung {number}", f"{one.stem}.png", name, *frame])
    header = ["Template Name", "Filename", "Mask", "Resolution", "Top", "Left", "Width", "Height"]
    table(folder / "structure.csv", header, rows)


def _some_of(folder: Path, source: Path, files: list[Path]) -> None:
    for file in files:
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _bccd_real(folder: Path, rng: random.Random, source: Path) -> None:
    shown = set(rng.sample(sorted(path.stem for path in source.rglob("*.xml")), 3))
    _some_of(folder, source, [path for path in source.rglob("*") if path.is_file() and path.stem in shown])
    for file in source.rglob("ImageSets/Main/*.txt"):
        kept = [line for line in file.read_text().splitlines() if line.strip() in shown]
        put(folder / file.relative_to(source), "".join(f"{line}\n" for line in kept))


def _smear_real(folder: Path, rng: random.Random, source: Path) -> None:
    with (source / "annotations.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    column = next(place for place, cell in enumerate(rows[0]) if cell.lower().endswith((".png", ".jpg")))
    shown = set(rng.sample(sorted({row[column] for row in rows}), 3))
    table(folder / "annotations.csv", header, [row for row in rows if row[column] in shown])
    stems = {Path(name).stem for name in shown}
    images = [path for path in (source / "images").rglob("*") if path.is_file() and path.stem in stems]
    _some_of(folder, source, images)


def _set(dataset: str, write: Callable[..., None], **more: object) -> SmallSet:
    return SmallSet(dataset, write, is_of_rows=dataset not in ("coco", "pascal_voc", "cvat"), **more)


BOX_SETS: dict[str, SmallSet] = {
    "bccd": _set("bccd", _bccd_real, folder="bccd"),
    "blood_smear_csv": _set("blood_smear_csv", _smear_real, folder="blood_smear_csv"),
    "coco": _set("coco", _coco),
    "pascal_voc": _set("pascal_voc", _voc),
    "cvat": _set("cvat", _cvat),
    "yolo": _set("yolo", _yolo, may_be_empty=".txt"),
    "kitti": _set("kitti", _kitti, may_be_empty=".txt"),
    "vindr_cxr": _set("vindr_cxr", _vindr),
    "padchest_gr": _set("padchest_gr", _padchest),
    "ms_cxr": _set("ms_cxr", _ms_cxr),
    "chestx_det/json": _set("chestx_det", _chest_json),
    "chestx_det/parquet": _set("chestx_det", _chest_parquet),
    "nih_boxes": _set("nih_boxes", _nih),
    "covid_cxr_masks": _set("covid_cxr_masks", _masks),
}
