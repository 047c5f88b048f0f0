"""Medical Segmentation Decathlon, and any task in its layout: NIfTI volumes and label volumes, read slice by slice.

`dataset.json` names the labels, the modality and the training pairs (`imagesTr/`, `labelsTr/`). Where it is missing,
`images/` and `labels/` anywhere below hold files of equal names, and the option `labels=1=anterior,2=posterior` names
what is in them. A case is one slice: `volumes` says how it is turned and scaled, and that no pixel is resampled.

Of a volume come the slices with foreground, and empty ones so that they make up the share `empty_share` of its cases:
without any, a model never meets an image where the class is absent, and with all, most of its time goes to black masks.
The empty ones are spread evenly over those there are. The patient is the volume.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers import volumes
from lightbox.readers.findings import MAX_NAME
from lightbox.readers.masked_cases import MaskedCases, MaskedImage, check_name, read_whole_object
from lightbox.readers.masks import MaskError, MaskPart
from lightbox.readers.members import is_there
from lightbox.readers.pixels import PartPath
from lightbox.readers.rows import Gathering, RowError, inside
from lightbox.records import Case

EMPTY_SHARE = 0.1
NAMES = {"msd_hippocampus": "1=anterior hippocampus,2=posterior hippocampus"}
"""Labels of sets that travel without their `dataset.json`."""


@dataclass(frozen=True)
class _Task:
    """What is read: pairs of an image volume and its label volume, class by label, modality and body part."""

    pairs: tuple[tuple[Path, Path], ...]
    levels: dict[int, str]
    modality: str
    body_part: str


def read_cases(
    root: Path,
    rows: Gathering,
    *,
    split: str | None = None,
    plane: str = "axial",
    empty_share: float | str = EMPTY_SHARE,
    labels: str = "",
    channel: int | str | None = None,
    window: str = "",
) -> None:
    """Read the training volumes of a task as slices.

    Args:
        root: the task's folder.
        rows: where cases, problems and counts go.
        split: None; the test volumes come without labels, so they are not read.
        plane: one of `volumes.PLANES`.
        empty_share: empty slices among the cases of a volume, 0 <= share < 1, as far as it has them.
        labels: LABEL=CLASS separated by commas; "" takes `dataset.json`.
        channel: of 4-D volumes, from 0.
        window: grey levels LOW,HIGH that become black and white, such as -160,240 for the abdomen in CT; "" scales by
            the percentiles of the volume.

    Raises:
        RequestError: an unknown plane, a share outside its range, labels that nothing names, or no volume.
    """
    if plane not in volumes.PLANES:
        raise RequestError(f"plane='{plane}'", f"It is one of {', '.join(volumes.PLANES)}", "Choose one of them")
    share, task = _share(empty_share), _task(root, rows, labels)
    view = {"channel": None if channel is None else int(channel), "window": _window(window)}
    cases = MaskedCases(rows, modality=task.modality, body_part=task.body_part)
    for image_file, label_file in task.pairs:
        with rows.row(image_file, "all", counter="volumes"):
            array = _labels(image_file, label_file, task.levels, rows, channel=view["channel"])
            axis = volumes.PLANES.index(plane)
            others = tuple(other for other in range(3) if other != axis)
            has_any = (array != 0).any(axis=others)
            chosen = [*np.flatnonzero(has_any), *_spread(np.flatnonzero(~has_any), int(has_any.sum()), share)]
            for index in sorted(int(one) for one in chosen):
                image = _slice_image(cases, image_file, plane, index, view)
                _mark(cases, image, label_file, plane, index, task.levels)
            rows.counts["slices_with_foreground"] += int(has_any.sum())
            rows.counts["slices_empty"] += len(chosen) - int(has_any.sum())
            rows.counts["slices_left_out"] += len(has_any) - len(chosen)
    cases.finish(root, task.levels.values())


def _slice_image(cases: MaskedCases, file: Path, plane: str, index: int, view: dict) -> MaskedImage:
    path = PartPath(volumes.slice_path(file, plane, index, **view))
    stem = file.name.split(".nii")[0]
    return cases.image(Case(id=f"{stem}-{plane}-{index:03d}", images=(path,), patient_id=stem), "image")


def _mark(cases: MaskedCases, image: MaskedImage, file: Path, plane: str, index: int, levels: dict[int, str]) -> None:
    """Add the masks of one slice; its classes were checked for the whole volume."""
    path = PartPath(volumes.slice_path(file, plane, index))
    place = volumes.slice_place(path)
    assert place is not None
    for level in sorted(set(np.unique(volumes.slice_labels(place)).tolist()) & levels.keys()):
        cases.mark(image, levels[level], MaskPart(path, (level,), labels=frozenset(levels) | {0}))


def _labels(
    image_file: Path, label_file: Path, levels: dict[int, str], rows: Gathering, *, channel: int | None
) -> np.ndarray:
    """The label volume in RAS+, integers, checked against its image; what is wrong costs this volume alone.

    Raises:
        MaskError: unreadable, of another shape or place, or with labels that nobody named.
        RowError: the image volume cannot be read.
    """
    try:
        image = volumes.read_volume(image_file, channel=channel)
    except RequestError as err:
        raise RowError("image", f"is {image_file.name}: {err.given} {err.why} {err.do}") from err
    try:
        label = volumes.read_volume(label_file)
    except RequestError as err:
        raise _fault(rows, "unreadable_masks", f"is {label_file.name}: {err.given} {err.why} {err.do}") from err
    if label.values.shape != image.values.shape or not np.allclose(label.affine, image.affine, atol=1e-2):
        raise _fault(
            rows,
            "masks_of_another_size",
            f"is {label_file.name} of shape {label.values.shape}, and its image has {image.values.shape}, or another "
            "affine; which voxels it marks would be a guess; resample it onto its image, or drop the pair",
        )
    array = np.rint(label.values).astype(np.int64)
    unknown = sorted(set(np.unique(array).tolist()) - levels.keys() - {0})
    if unknown:
        raise _fault(
            rows,
            "masks_with_unknown_labels",
            f"is {label_file.name}, which holds the labels {', '.join(map(str, unknown))}; no class has them; "
            "name them in dataset.json or with the option labels=",
        )
    return array


def _fault(rows: Gathering, check: str, reason: str) -> MaskError:
    rows.counts[check] += 1
    return MaskError(check, "label", reason)


def _spread(empty: np.ndarray, n_foreground: int, share: float) -> np.ndarray:
    """As many of the empty slices as make up `share` of the cases, evenly spaced, so that no end is preferred."""
    count = min(len(empty), round(share / (1 - share) * n_foreground))
    return empty[(2 * np.arange(count) + 1) * len(empty) // (2 * max(count, 1))]


def _share(empty_share: float | str) -> float:
    try:
        share = float(empty_share)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise RequestError(f"empty_share={empty_share}", "It is a share of the cases, 0 <= share < 1", "Choose 0.1")
    return share


def _window(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise RequestError(
            f"window='{text}'", "It is LOW,HIGH with LOW below HIGH", "Write for example window=-160,240"
        )
    return low, high


def _task(root: Path, rows: Gathering, labels: str) -> _Task:
    file = root / "dataset.json"
    described = read_whole_object(file) if is_there(file) else {}
    names = labels or NAMES.get(rows.dataset, "")
    levels = _levels(names, described.get("labels"), f"'{file}'")
    listed = described.get("training")
    pairs: list[tuple[Path, Path]] = []
    if isinstance(listed, list):
        for number, entry in enumerate(listed, start=1):
            with rows.row(file, number, counter="listed_volumes"):
                if not isinstance(entry, dict):
                    raise RowError("training", f"is a {type(entry).__name__}, not an object with image and label")
                names_of = [str(entry.get(key) or "") for key in ("image", "label")]
                image, label = (inside(root, name, key) for name, key in zip(names_of, ("image", "label"), strict=True))
                pairs.append((image, label))
    else:
        folders = sorted(root.rglob("images")) if root.is_dir() else []
        for folder in folders:
            for image in sorted(folder.glob("*.nii*")):
                pairs.append((image, folder.parent / "labels" / image.name))
    if not pairs:
        raise RequestError(
            f"Volumes at '{root}'",
            "There is neither a dataset.json with training pairs nor images/ with .nii or .nii.gz beside labels/",
            "Name the folder of one task, such as Task04_Hippocampus",
        )
    modalities = described.get("modality")
    if modalities is not None and not (isinstance(modalities, dict) and all(map(_is_text, modalities.values()))):
        raise RequestError(
            f"'{file}', field 'modality'",
            f"It is {{channel: name}}, names of at most {MAX_NAME} signs",
            "Correct the file",
        )
    modality = ", ".join((modalities or {}).values())
    modality = {"MRI": "MR"}.get(modality, modality) or ("MR" if rows.dataset in NAMES else "")
    body_part = {"msd_hippocampus": "brain"}.get(rows.dataset, str(described.get("name") or "").lower())
    return _Task(tuple(pairs), levels, modality, body_part)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= MAX_NAME


def _levels(names: str, described: object, source: str) -> dict[int, str]:
    """Class by label: from the option, else from the file `source`; 0 is background."""
    if names:
        entries: dict[str, object] = {level: name for level, _, name in (e.partition("=") for e in names.split(","))}
    elif isinstance(described, dict):
        entries = dict(described)
    else:
        raise RequestError(
            f"Label volumes whose labels nothing names, beside {source}",
            "There is no dataset.json with labels",
            "Give the option labels=1=liver,2=tumour",
        )
    levels: dict[int, str] = {}
    for level, name in entries.items():
        if not level.strip().isdecimal() or not _is_text(name):
            where = "the option labels" if names else source
            raise RequestError(
                f"Label '{level}' named {name!r:.40} in {where}", "A label is a whole number with a name", "Correct it"
            )
        if int(level):
            levels[int(level)] = check_name(str(name).strip())
    return levels
