"""Leakage: the patients, images and questions that two splits of a dataset share, counted.

An image is known by its path or, where given, by a digest of its pixels; a case without an image is known by its id.
Splits of our own must be clean; an official split is the publisher's, and its counts are shown beside every score.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.records import Case

ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class Leakage:
    """What the split `later` shares with the split `earlier`.

    `images` and `items` count the later split; `images_shared` of them occur in the earlier one too, and
    `items_on_shared_images` questions concern them. `patients` counts known patients of the later split.
    `repeated_pairs` are (image, question) pairs that stand in both.
    """

    earlier: str
    later: str
    images: int
    images_shared: int
    items: int
    items_on_shared_images: int
    repeated_pairs: int
    patients: int
    patients_shared: int
    items_of_shared_patients: int

    @property
    def is_clean(self) -> bool:
        """True where no image and no patient is shared."""
        return self.images_shared == 0 and self.patients_shared == 0

    def __str__(self) -> str:
        return (
            f"{self.images_shared} of {self.images} {self.later} images "
            f"({self.items_on_shared_images} of {self.items} items) "
            f"and {self.patients_shared} of {self.patients} known {self.later} patients occur in {self.earlier} too; "
            f"{self.repeated_pairs} (image, question) pairs repeat"
        )


def image_key(image: Path | np.ndarray) -> str:
    """What identifies an image: its path, or a digest of an array's shape and content."""
    if isinstance(image, np.ndarray):
        return hashlib.sha256(str((image.shape, image.dtype)).encode() + image.tobytes()).hexdigest()
    return str(image)


def image_keys(case: Case, pixels: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Keys of a case's images; `pixels` maps a path to a digest of its pixels and wins over the path."""
    keys = tuple(image_key(image) for image in case.images) or (f"case {case.id}",)
    return tuple((pixels or {}).get(key, key) for key in keys)


def leakage(cases: Iterable[Case], *, pixels: Mapping[str, str] | None = None) -> tuple[Leakage, ...]:
    """Count what is shared by every two splits that the cases name.

    Args:
        cases: with `split` set; cases without a split are left out.
        pixels: digest of the pixels by image path, where equal images under two names should be found.

    Returns:
        One entry per pair, in the order train, validation, test, then other names.
    """
    by_split: dict[str, list[Case]] = {}
    for case in cases:
        by_split.setdefault(case.split, []).append(case)
    by_split.pop("", None)  # no split, no leak
    names = sorted(by_split, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return tuple(
        _shared(earlier, by_split[earlier], later, by_split[later], pixels)
        for position, later in enumerate(names)
        for earlier in names[:position]
    )


def require_clean(cases: Iterable[Case]) -> None:
    """Refuse splits of our own that share a patient or an image.

    Raises:
        RequestError: with the counts of the first pair of splits that leaks.
    """
    for pair_leakage in leakage(cases):
        if not pair_leakage.is_clean:
            raise RequestError(
                f"The splits '{pair_leakage.earlier}' and '{pair_leakage.later}' leak: {pair_leakage}",
                "A score on images or patients that were trained on says nothing about new ones",
                "Split by image: lightbox.readers.splits.split_by_image, or data.split=by_image",
            )


def _shared(
    earlier: str, before: list[Case], later: str, after: list[Case], pixels: Mapping[str, str] | None
) -> Leakage:
    earlier_images = {key for case in before for key in image_keys(case, pixels)}
    earlier_patients = {case.patient_id for case in before} - {None}
    earlier_pairs = {pair for case in before for pair in _pairs(case, pixels)}
    images = {key for case in after for key in image_keys(case, pixels)}
    patients = {case.patient_id for case in after} - {None}
    count: Counter[str] = Counter()
    for case in after:
        count["items"] += len(case.questions)
        count["shared"] += len(case.questions) * (not earlier_images.isdisjoint(image_keys(case, pixels)))
        count["of_patients"] += len(case.questions) * (case.patient_id in earlier_patients)
    return Leakage(
        earlier=earlier,
        later=later,
        images=len(images),
        images_shared=len(images & earlier_images),
        items=count["items"],
        items_on_shared_images=count["shared"],
        repeated_pairs=len({pair for case in after for pair in _pairs(case, pixels)} & earlier_pairs),
        patients=len(patients),
        patients_shared=len(patients & earlier_patients),
        items_of_shared_patients=count["of_patients"],
    )


def _pairs(case: Case, pixels: Mapping[str, str] | None) -> set[tuple[tuple[str, ...], str]]:
    keys = image_keys(case, pixels)
    # "Is it?" and "is  it?" are one question to whoever memorises
    return {(keys, " ".join(question.text.lower().split())) for question in case.questions}
