"""The sets of preference pairs that can be read, by name.

They stand beside `catalog.DATASETS` and not in it: that file's code is in the key of every job on real data, and a set
that no paper trained on yet would make those jobs older source.
"""

from dataclasses import dataclass
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.catalog import Reader
from lightbox.readers.members import check_folder, is_there
from lightbox.readers.preferences import read_file
from lightbox.readers.rows import Gathering
from lightbox.readers.stores import ImageStore, zip_store

FOLDER = "mmedpo_preferences"
"""Folder of the released files, below `$LIGHTBOX_DATA_ROOT`; images are those of the sets beside it."""


@dataclass(frozen=True)
class Release:
    """One released file, and where its images lie: the folder of a dataset beside ours, and folders or a zip in it."""

    file: str
    dataset: str = ""
    folders: tuple[str, ...] = ()
    zips: tuple[str, ...] = ()


RELEASES = {
    "mmedpo_slake": Release("slake_dpo_weighted.json", "slake", ("imgs", "images"), ("imgs.zip",)),
    "mmedpo_vqa_rad": Release("vqa-rad_dpo_weighted.json", "vqa_rad", ("images", "VQA_RAD Image Folder")),
    "mmedpo_iuxray": Release("iuxray_dpo_weighted.json", "iuxray", ("images",)),
    "mmedpo_mimic": Release("mimic_dpo_weighted.json", "mimic_cxr", ("images", "files")),
}


def read_cases(
    root: Path,
    rows: Gathering,
    *,
    split: str | None = None,
    file: str = "",
    images: str = "",
    needs_images: bool = False,
    base_model: str = "",
) -> None:
    """Read the preference file of the set that `rows` is called after.

    Args:
        root: folder with the file, or with `data/` as released.
        rows: where cases, problems and counts go.
        split: "train" for a released file, whose pairs all are of it; None for either.
        file: the file, absolute or relative to `root`; "" takes the released one, or the only JSON file of a folder.
        images: folder or zip file that names of images start from, absolute or relative to `root`; "" takes `images`
            in `root`, else the folder of the set's images beside `root`. Without either, texts alone are read.
        needs_images: refuse pairs whose images are not there, row by row.
        base_model: refuse a file that says its rejected answers are of another model.

    Raises:
        RequestError: no such file or folder, several files to choose from, or what `preferences.read_file` refuses.
    """
    release = RELEASES.get(rows.dataset, Release(""))
    read_file(
        _file(root, rows.dataset, release, file),
        rows,
        store=_store(root, rows, release, images),
        split="train" if release.file else "",
        needs_images=needs_images,
        base_model=base_model,
    )


PREFERENCE_SETS: dict[str, Reader] = {
    "mmedpo_slake": Reader("MMedPO, pairs on SLAKE", "Apache-2.0", ("train",), read_cases),
    "mmedpo_vqa_rad": Reader("MMedPO, pairs on VQA-RAD", "Apache-2.0", ("train",), read_cases),
    "mmedpo_iuxray": Reader("MMedPO, pairs on IU X-Ray", "CC-BY-NC-ND-4.0", ("train",), read_cases),
    "mmedpo_mimic": Reader("MMedPO, pairs on MIMIC-CXR", "PhysioNet-Credentialed-1.5.0", ("train",), read_cases),
    # a format, whoever's data
    "preference_json": Reader("Preference JSON", "not stated", (), read_cases),
}


def _file(root: Path, name: str, release: Release, file: str) -> Path:
    if file:
        return root / file
    if release.file:
        return next(
            (place for folder in ("data", ".") if is_there(place := root / folder / release.file)), root / release.file
        )
    found = sorted(root.glob("*.json"))
    if len(found) == 1:
        return found[0]
    raise RequestError(
        f"{name} at '{root}'",
        f"The folder holds {len(found)} JSON files, and one is read",
        "Name it with --option file=",
    )


def _store(root: Path, rows: Gathering, release: Release, images: str) -> ImageStore | None:
    if images:
        place = root / images
        if place.is_dir():
            return ImageStore(place)
        if place.is_file():
            return zip_store(place, rows)
        raise RequestError(f"images='{images}', that is '{place}'", "It is no folder and no zip file", "Correct it")
    beside = root.parent / release.dataset
    folders = [root / "images", *(beside / name for name in release.folders if release.dataset)]
    for folder in folders:
        if check_folder(folder).is_dir() and any(folder.iterdir()):
            return ImageStore(folder)
    zips = [root / "images.zip", *(beside / name for name in release.zips)]
    return next((zip_store(file, rows) for file in zips if is_there(file)), None)
