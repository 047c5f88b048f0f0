"""Small sets in every form that the readers of masks take, written by hand.

Images and masks are drawn here and not taken from real data: a mask must have its image's size.
"""

import io
import random
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from PIL import Image

from lightbox.testing.spoiled.small import PICTURES, SmallSet, put

HEIGHT, WIDTH = 18, 24
CLASSES = {1: "cell", 3: "dust"}
_SLICES = ("ct_00--SET--p0--x_0001", "ct_00--SET--p0--x_0002", "mr_00--SET--p1--x_0001", "mr_00--OTHER--p2--x_0001")


def _png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _image(rng: random.Random) -> np.ndarray:
    return np.random.default_rng(rng.randrange(1 << 30)).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)


def _region(rng: random.Random, value: int = 255) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    top, left = rng.randrange(HEIGHT - 6), rng.randrange(WIDTH - 6)
    pixels[top : top + rng.randint(2, 6), left : left + rng.randint(2, 6)] = value
    return pixels


def _by_value(folder, rng, _) -> None:
    for split in ("train", "test"):
        for place in range(PICTURES):
            put(folder / split / "images" / f"{split}{place}.png", _png(_image(rng)))
            levels = np.maximum(_region(rng, 1), _region(rng, 3) if place else 0)
            put(folder / split / "masks" / f"{split}{place}.png", _png(levels.astype(np.uint8)))
    put(folder / "labels.json", {name: level for level, name in CLASSES.items()})


def _by_name(folder, rng, _) -> None:
    for place in range(PICTURES):
        put(folder / "images" / f"p{place}.png", _png(_image(rng)))
        for name in list(CLASSES.values())[: 1 + place % 2]:
            put(folder / "masks" / f"p{place}_{name}_000.png", _png(_region(rng)))


def _demo(folder, rng, _) -> None:
    pairs: dict[str, list[str]] = {}
    for place in range(PICTURES):
        put(folder / "data_demo" / "images" / f"v{place}_7.png", _png(_image(rng)))
        names = [f"data_demo/masks/v{place}_7_{name}_000.png" for name in CLASSES.values()]
        pairs[f"data_demo/images/v{place}_7.png"] = names
        for name in names:
            put(folder / name, _png(_region(rng)))
    put(folder / "data_demo" / "image2label_train.json", pairs)


def _fly(folder, rng, _) -> None:
    for place in range(PICTURES):
        put(folder / "stack1" / "raw" / f"0{place}.tif", _png(_image(rng), "TIFF"))
        for name in ("membranes", "mitochondria", "synapses"):
            put(folder / "stack1" / name / f"0{place}.png", _png(_region(rng)))


def _decathlon(folder, rng, _) -> None:
    pairs = []
    for place in range(PICTURES):
        values = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 900, (6, 7, 4)).astype(np.int16)
        labels = np.zeros(values.shape, np.uint8)
        labels[1:4, 2:5, 1:3] = rng.choice((1, 3))
        for name, array in (("imagesTr", values), ("labelsTr", labels)):
            image = nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]))
            put(folder / name / f"v{place}.nii.gz", b"")
            nib.save(image, folder / name / f"v{place}.nii.gz")
        pairs.append({"image": f"./imagesTr/v{place}.nii.gz", "label": f"./labelsTr/v{place}.nii.gz"})
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background"} | {str(k): v for k, v in CLASSES.items()}}
    put(folder / "dataset.json", described | {"training": pairs})


def _sa_med2d(folder, rng, _) -> None:
    listed: dict[str, list[str]] = {}
    for name in _SLICES:
        put(folder / "images" / f"{name}.png", _png(_image(rng)))
        listed[f"images/{name}.png"] = [f"masks/{name}--000{level}_000.png" for level in CLASSES]
        for mask in listed[f"images/{name}.png"]:
            put(folder / mask, _png(_region(rng)))
    put(folder / "SAMed2D_v1.json", listed)
    classes = {name: level for level, name in CLASSES.items()}
    put(folder / "SAMed2D_v1_class_mapping_id.json", {"SET": classes, "OTHER": classes})


def _mecovqa(folder, rng, draw) -> None:
    _sa_med2d(folder, rng, draw)
    put(folder / "train" / "MeCoVQA-Grounding.json", list(_grounding()))
    put(folder / "train" / "MeCoVQA-Region.json", list(_regions()))


def _grounding() -> Iterator[dict]:
    for name in _SLICES:
        for level, label in CLASSES.items():
            mask = f"<mask>masks_merged/{name}--000{level}_merged.png</mask>"
            turns = [f"<image>\nSegment the {label}.", f"It is <SEG>. {mask}"]
            yield _talk(name, turns)


def _regions() -> Iterator[dict]:
    for name in _SLICES:
        region = f"<region>masks/{name}--0001_000.png</region>"
        yield _talk(name, [f"<image>\nWhat is in {region}?", "A cell."])


def _talk(name: str, turns: list[str]) -> dict:
    speakers = ("human", "gpt")
    talk = [{"from": speaker, "value": text} for speaker, text in zip(speakers, turns, strict=True)]
    return {"image": f"images/{name}.png", "conversations": talk}


MASKED_SETS: dict[str, SmallSet] = {
    "mask_folders/value": SmallSet("mask_folders", _by_value, is_of_rows=False),
    "mask_folders/name": SmallSet("mask_folders", _by_name, is_of_rows=False),
    "sam_med2d_demo": SmallSet("sam_med2d_demo", _demo, is_of_rows=False),
    "drosophila_vnc_em": SmallSet("drosophila_vnc_em", _fly, is_of_rows=False),
    "decathlon": SmallSet("decathlon", _decathlon, is_of_rows=False),
    "sa_med2d_20m": SmallSet("sa_med2d_20m", _sa_med2d, is_of_rows=False),
    "mecovqa": SmallSet("mecovqa", _mecovqa, is_of_rows=False),
}
