"""The datasets that can be read, by name, and `read`."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers import (
    box_csv,
    chestx_det,
    coco,
    kvasir_vqa,
    mask_files,
    medxpertqa_mm,
    ms_cxr,
    nih_boxes,
    omnimedvqa,
    padchest_gr,
    path_vqa,
    pmc_vqa,
    rationales,
    slake,
    text_boxes,
    vindr_cxr,
    vqa_med_2019,
    vqa_rad,
    xml_boxes,
)
from lightbox.readers.rows import Gathering, ReadResult

ROOT_VARIABLE = "LIGHTBOX_DATA_ROOT"


@dataclass(frozen=True)
class Reader:
    """How one dataset is read: title, licence as every case carries it, official splits if any, and the function."""

    title: str
    licence: str
    splits: tuple[str, ...]
    read_cases: Callable[..., None]

    @property
    def module(self) -> str:
        """The module with this reader's own code, which a job key covers for the reader that a run uses."""
        return self.read_cases.__module__

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of this reader, besides `split`."""
        return tuple(name for name in inspect.signature(self.read_cases).parameters if name not in _FIXED)


_FIXED = ("root", "rows", "split")  # what every reader takes; the rest of its signature are its options
PATH_VQA_LICENCE = "MIT for the mirror's files; images are their publishers'"
_TWO, _THREE = ("train", "test"), ("train", "validation", "test")

DATASETS: dict[str, Reader] = {
    "vqa_rad": Reader("VQA-RAD", "CC0-1.0", _TWO, vqa_rad.read_cases),
    "vqa_med_2019": Reader("VQA-Med 2019", "CC-BY-4.0", _THREE, vqa_med_2019.read_cases),
    "slake": Reader("SLAKE", "CC-BY-4.0", _THREE, slake.read_cases),
    "path_vqa": Reader("PathVQA", PATH_VQA_LICENCE, _THREE, path_vqa.read_cases),
    "r_rad": Reader("R-RAD", "not stated", _TWO, rationales.read_cases),
    "r_slake": Reader("R-SLAKE", "not stated", _TWO, rationales.read_cases),
    "r_path": Reader("R-Path", "not stated", _THREE, rationales.read_cases),
    "pmc_vqa": Reader("PMC-VQA", "CC-BY-SA", _TWO, pmc_vqa.read_cases),
    "kvasir_vqa": Reader("Kvasir-VQA", "CC-BY-NC-4.0", (), kvasir_vqa.read_cases),
    "omnimedvqa": Reader("OmniMedVQA", "not stated", (), omnimedvqa.read_cases),
    "medxpertqa_mm": Reader("MedXpertQA MM", "MIT", ("validation", "test"), medxpertqa_mm.read_cases),
    # findings with boxes
    "vindr_cxr": Reader("VinDr-CXR", "PhysioNet-Credentialed-1.5.0", _TWO, vindr_cxr.read_cases),
    "padchest_gr": Reader("PadChest-GR", "BIMCV access agreement", _THREE, padchest_gr.read_cases),
    "ms_cxr": Reader("MS-CXR", "PhysioNet-Credentialed-1.5.0", _THREE, ms_cxr.read_cases),
    "chestx_det": Reader("ChestX-Det", "Apache-2.0", _TWO, chestx_det.read_cases),
    "nih_boxes": Reader("NIH ChestX-ray8 boxes", "NIH Clinical Center", (), nih_boxes.read_list),
    "nih_cxr_mass_boxes": Reader("Masses on NIH radiographs", "non-commercial", (), nih_boxes.read_masses),
    "covid_cxr_masks": Reader("COVID-19 CXR segmentations", "CC-BY-NC-SA", (), mask_files.read_covid),
    "dsb2018_nuclei": Reader("Data Science Bowl 2018", "CC0-1.0", (), mask_files.read_nuclei),
    "bccd": Reader("BCCD", "MIT", _THREE, xml_boxes.read_voc),
    "blood_smear_csv": Reader("Blood-cell detection", "MIT", (), box_csv.read_cases),
    # a format, whoever's data
    "coco": Reader("COCO JSON", "not stated", _THREE, coco.read_cases),
    "cvat": Reader("CVAT for images", "not stated", (), xml_boxes.read_cvat),
    "pascal_voc": Reader("Pascal VOC", "not stated", _THREE, xml_boxes.read_voc),
    "yolo": Reader("YOLO text", "not stated", _THREE, text_boxes.read_yolo),
    "kitti": Reader("KITTI text", "not stated", _THREE, text_boxes.read_kitti),
}


def read(name: str, root: Path | str | None = None, split: str | None = None, **options: object) -> ReadResult:
    """Read a dataset.

    Args:
        name: a key of `DATASETS`.
        root: its folder; None means `$LIGHTBOX_DATA_ROOT/<name>`.
        split: one official split, or None for all there are.
        options: the reader's own, see `Reader.options`.

    Returns:
        Cases (images as paths, never copied), malformed rows, counts.

    Raises:
        RequestError: unknown name, split or option; a root that is not there; an unreadable file; no readable row.
    """
    reader = find(name)
    if split is not None and split not in reader.splits:
        splits = f"Its splits are {', '.join(reader.splits)}" if reader.splits else "It has no official split"
        raise RequestError(
            f"split='{split}' of {name}", splits, "Choose one of them" if reader.splits else "Leave it out"
        )
    for option in options:
        if option not in reader.options:
            raise RequestError(
                f"The option '{option}' for {name}",
                f"Its reader takes {', '.join(reader.options) or 'no options'}",
                "Remove it or correct its name",
            )
    folder = root_of(name, root)
    rows = Gathering(name, reader.licence)
    reader.read_cases(folder, rows, split=split, **options)
    return rows.result(folder)


def find(name: str) -> Reader:
    """The reader called `name`.

    Raises:
        RequestError: unknown, with the names there are.
    """
    if name not in DATASETS:
        raise RequestError(
            f"There is no dataset '{name}'", f"The readers are {', '.join(DATASETS)}", "Choose one of them"
        )
    return DATASETS[name]


def root_of(name: str, root: Path | str | None = None) -> Path:
    """The folder of a dataset: `root`, or `$LIGHTBOX_DATA_ROOT/<name>`.

    Raises:
        RequestError: neither is given, or it is not a folder.
    """
    base = os.environ.get(ROOT_VARIABLE)
    if root is None and not base:
        raise RequestError(
            f"No root for {name}", f"Neither --root nor {ROOT_VARIABLE} is set", f"Give --root, or set {ROOT_VARIABLE}"
        )
    # --root wins: the variable is the habit, the option the exception
    folder = Path(root) if root is not None else Path(base) / name
    if not folder.is_dir():
        raise RequestError(
            f"Root '{folder}' of {name}",
            "It is not a folder",
            f"See how to get {name} in its card in shared_data/cards",
        )
    return folder
