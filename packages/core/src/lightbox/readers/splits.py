"""Splits of our own, by patient where known and by image otherwise.

Two cases belong together when they share a patient, an image or an id; such groups are never divided.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.leakage import image_keys, require_clean
from lightbox.records import Case

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


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
    # a digest and not a shuffle: the order of the cases does not matter, and a new case moves no other
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
    require_clean(divided)  # asked of the result, so that a defect of the grouping cannot pass
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
    for case, group in zip(cases, roots, strict=True):
        name[group] = min(case.id, name.get(group, case.id))  # the smallest id, whichever case the union began with
    return [name[group] for group in roots]


def _ties(case: Case) -> list[str]:
    """What binds a case to others: its id, images and patient, each with its kind in front."""
    patient = [] if case.patient_id is None else [f"patient {case.patient_id}"]
    return [f"id {case.id}", *(f"image {key}" for key in image_keys(case)), *patient]
