"""Splits by patient or image, and leakage between splits: ours must have none, an official one's is counted.

Two cases belong together when they share a patient or an image; such groups are never divided. An image is known by
its path or, where given, by a digest of its pixels; a case without an image is known by its id.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.records import Case

ORDER = ("train", "validation", "test")
FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


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
    by_split.pop("", None)
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
    for found in leakage(cases):
        if not found.is_clean:
            raise RequestError(
                f"The splits '{found.earlier}' and '{found.later}' leak: {found}",
                "A score on images or patients that were trained on says nothing about new ones",
                "Split by image: lightbox.readers.splits.split_by_image, or data.split=by_image",
            )


def split_by_image(cases: Sequence[Case], seed: int, fractions: Mapping[str, float] = FRACTIONS) -> tuple[Case, ...]:
    """Divide cases anew, by patient where known and by image otherwise; official splits are forgotten.

    Cases that show the same images under the same id (one per official split) become one. The division depends on the
    cases and the seed alone, not on their order.

    Args:
        cases: from one dataset.
        seed: >= 0.
        fractions: share of the groups per split, each >= 0, adding up to 1.

    Returns:
        Cases with `split` set, in their first order; no patient and no image is in two splits.

    Raises:
        RequestError: a negative seed, or fractions that do not add up to 1.
    """
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if seed < 0 or not len(shares) or (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
        raise RequestError(
            f"seed={seed}, fractions={dict(fractions)}",
            "A split needs a seed of at least 0 and shares that add up to 1",
            "Give for example fractions={'train': 0.8, 'validation': 0.1, 'test': 0.1}",
        )
    merged = merge_cases(cases)
    groups = _groups(merged)
    names = sorted(set(groups), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    edges = np.cumsum(shares) * len(names)
    # a group sits at the middle of its place, so that rounding favours no split
    split_of = {
        name: list(fractions)[int(np.searchsorted(edges, place + 0.5).clip(0, len(edges) - 1))]
        for place, name in enumerate(names)
    }
    divided = tuple(
        dataclasses.replace(case, split=split_of[group]) for case, group in zip(merged, groups, strict=True)
    )
    require_clean(divided)
    return divided


def split_by_file(cases: Sequence[Case], file: Path) -> tuple[Case, ...]:
    """Apply a split of our own from a JSON file ``{"train": [case ids], "test": [...]}``; leakage is for the caller.

    Raises:
        RequestError: an unreadable file, a case in two lists or in none, or an id that no case has.
    """
    merged = merge_cases(cases)
    split_of: dict[str, str] = {}
    for split, ids in read_json(file, dict).items():
        for case_id in map(str, ids if isinstance(ids, list) else ()):
            if split_of.setdefault(case_id, split) != split:
                raise RequestError(
                    f"Split file '{file}': case {case_id} stands in '{split_of[case_id]}' and in '{split}'",
                    "A case has one split",
                    "Remove it from one list",
                )
    strangers, missing = set(split_of) - {case.id for case in merged}, [c.id for c in merged if c.id not in split_of]
    if strangers or missing:
        odd = f"no case is called {min(strangers)}" if strangers else f"case {missing[0]} is in no list"
        raise RequestError(
            f"Split file '{file}': {odd}",
            f"{len(strangers)} ids are unknown and {len(missing)} cases have no split",
            "List every case of the dataset once",
        )
    return tuple(dataclasses.replace(case, split=split_of[case.id]) for case in merged)


def merge_cases(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Join cases of the same id and images, as official splits that share images make them; `split` is emptied."""
    merged: dict[tuple[str, ...], Case] = {}
    for case in cases:
        key = (case.id, *image_keys(case))
        first = merged.get(key)
        questions = (*first.questions, *case.questions) if first else case.questions
        merged[key] = dataclasses.replace(first or case, questions=questions, split="")
    return tuple(merged.values())


def _shared(
    earlier: str, before: list[Case], later: str, after: list[Case], pixels: Mapping[str, str] | None
) -> Leakage:
    seen = {key for case in before for key in image_keys(case, pixels)}
    known = {case.patient_id for case in before} - {None}
    pairs = {pair for case in before for pair in _pairs(case, pixels)}
    images = {key for case in after for key in image_keys(case, pixels)}
    patients = {case.patient_id for case in after} - {None}
    count: Counter[str] = Counter()
    for case in after:
        count["items"] += len(case.questions)
        count["shared"] += len(case.questions) * (not seen.isdisjoint(image_keys(case, pixels)))
        count["of_patients"] += len(case.questions) * (case.patient_id in known)
    return Leakage(
        earlier=earlier,
        later=later,
        images=len(images),
        images_shared=len(images & seen),
        items=count["items"],
        items_on_shared_images=count["shared"],
        repeated_pairs=len({pair for case in after for pair in _pairs(case, pixels)} & pairs),
        patients=len(patients),
        patients_shared=len(patients & known),
        items_of_shared_patients=count["of_patients"],
    )


def _pairs(case: Case, pixels: Mapping[str, str] | None) -> set[tuple[tuple[str, ...], str]]:
    keys = image_keys(case, pixels)
    return {(keys, " ".join(question.text.lower().split())) for question in case.questions}


def _groups(cases: Sequence[Case]) -> list[str]:
    """Name of each case's group, the cases tied to it by patients and images: the smallest case id in the group.

    Ids, unlike paths, are the same wherever the dataset lies.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for case in cases:
        first, *others = _ties(case)
        for other in others:
            parent[root(other)] = root(first)
    roots = [root(_ties(case)[0]) for case in cases]
    name: dict[str, str] = {}
    for case, found in zip(cases, roots, strict=True):
        name[found] = min(case.id, name.get(found, case.id))
    return [name[found] for found in roots]


def _ties(case: Case) -> list[str]:
    """What binds a case to others: its id, images and patient, each with its kind in front."""
    patient = [] if case.patient_id is None else [f"patient {case.patient_id}"]
    return [f"id {case.id}", *(f"image {key}" for key in image_keys(case)), *patient]
