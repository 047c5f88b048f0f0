"""Tools with which small sets are written: files, tables, pictures."""

import csv
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

ROWS = 6
PICTURES = 4
MAX_PICTURE_BYTES = 100_000
Draw = Callable[[str], bytes]
"""A picture by its ending, ".png" or ".jpg"."""


@dataclass(frozen=True)
class SmallSet:
    """How one form of a dataset is written small.

    `write` takes the folder, a random generator and where pictures come from; for a real set (`folder` names it below
    the data root) the third is that set's folder. `options` are the reader's. `split_file` is one of our own, in it.
    `is_of_rows` is False where an entry of its documents is more than a row, such as all images of a COCO file.
    `may_be_empty` is the ending of files that are sound without content.
    """

    dataset: str
    write: Callable[..., None]
    options: Mapping[str, object] = field(default_factory=dict)
    folder: str = ""
    split_file: str = ""
    is_of_rows: bool = True
    may_be_empty: str = ""


@lru_cache(maxsize=1)
def _pictures_below(data_root: Path) -> dict[str, dict[str, list[Path]]]:
    """Pictures by ending and by real set."""
    found: dict[str, dict[str, list[Path]]] = {".png": {}, ".jpg": {}}
    for file in sorted(data_root.rglob("*")):
        ending = {".jpeg": ".jpg"}.get(file.suffix.lower(), file.suffix.lower())
        if ending in found and 0 < file.stat().st_size <= MAX_PICTURE_BYTES:
            found[ending].setdefault(file.relative_to(data_root).parts[0], []).append(file)
    return found


def draw_from(rng: random.Random, data_root: Path | None) -> Draw:
    """Pictures drawn here, or taken from every set below `data_root`."""
    found = _pictures_below(data_root) if data_root else {".png": {}, ".jpg": {}}

    def draw(ending: str) -> bytes:
        if sets := found[ending]:  # a set first, then a file of it, since one set has thousands
            return rng.choice(sets[rng.choice(sorted(sets))]).read_bytes()
        pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 255, (18, 24), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG" if ending == ".png" else "JPEG")
        return stream.getvalue()

    return draw


def put(file: Path, content: object) -> None:
    """Write bytes, text, or JSON of anything else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")


def pack(file: Path, members: Mapping[str, bytes | str]) -> None:
    """Write a zip file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def lines(rows: list[dict]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(file: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write a CSV file."""
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    put(file, stream.getvalue())


def dicom_bytes(pixels: np.ndarray) -> bytes:
    """A DICOM file of one 16-bit grey frame, h w."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.WindowCenter, dataset.WindowWidth = 2000, 3000
    dataset.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
