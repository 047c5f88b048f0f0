"""Images with the mask of a class that is asked for: one form for phantoms and for sets of real files. No torch.

A real set has no requests, and as few images as sixteen. Here every class of an image is asked for by a template, each
seed holds out another part of the patients (of the images, where patients are unknown), and what is left out is
counted. A class is asked for where it is absent only if the set says that it was looked for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lightbox.config import check_positive
from lightbox.errors import RequestError
from lightbox.paper.drawn_regions import MASK, Asked
from lightbox.paper.held_images import TEST, TRAIN, rotated
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.region_prompts import text_key
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.mask_audit import with_sound_masks
from lightbox.readers.masks import mask_of
from lightbox.readers.pixels import load_pixels
from lightbox.readers.rows import Problem
from lightbox.readers.volumes import HIGH_PERCENTILE, LOW_PERCENTILE
from lightbox.records import Case, Finding

PARTS = 5
TEXTS = ("segment the {name} .", "outline the {name} .", "show the mask of the {name} .")
"""Requests in words of the phantom's, right for one and for many."""
WORDS = {"nucleus": "nuclei", "nosogastric tube": "nasogastric tube"}
"""By the lower-case name of a class, the words by which all of it in an image is asked for, where they differ."""
DARK_SETS = frozenset({"dsb2018_nuclei"})
"""Sets of which some images, such as fluorescence, use a tenth of the grey levels."""
LEFT_OUT = (
    *("present_without_a_mask", "over_per_case", "over_per_patient", "over_most", "absent_beyond_share"),
    *("classes_not_trained", "other_classes", "unreadable_images", "masks_lost_by_shrinking"),
)
"""Why a class of an image is not asked for, as counts call it."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskItem:
    """A class asked for in an image.

    Args:
        id: of the case and the class.
        image: uint8 h w, or h w 3 where it has colours; items of a case share it.
        name: the class, in words.
        question: the request for its mask.
        mask: bool h w, all of the class in the image; empty where it is absent.
        case_id: of the image; no other image has it.
        patient_id: None where unknown.
        modality: "" where unknown.
    """

    id: str
    image: np.ndarray
    name: str
    question: str
    mask: np.ndarray
    case_id: str
    patient_id: str | None = None
    modality: str = ""

    @property
    def is_present(self) -> bool:
        """True where the image shows the class."""
        return bool(self.mask.any())


@dataclass(frozen=True)
class MaskSplits:
    """Items to learn from and items to score, in a drawn order, so that a first part of them is a sample.

    `counts` are of cases and items, and, by the names of `LEFT_OUT`, of the requests that were not made. `problems` are
    the rows of the set that could not be read.
    """

    train: tuple[MaskItem, ...]
    held: tuple[MaskItem, ...]
    counts: dict[str, int]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class ItemRules:
    """Which classes of which images are asked for, and at what size.

    Args:
        absent_pct: of the requests for each class, how many in 100 meet images that are known to lack it, 0..90; fewer
            where the set has fewer.
        per_case: at most so many requests of an image; None asks for every class.
        per_patient: at most so many of a patient, since slices of one volume are much alike; None asks for all.
        most: at most so many of a split; None asks for all.
        longest_px: images whose longer side is above it are shrunk, and their masks with them; None shrinks none.
        in_colour: keep the colours of images that have some.
        use_full_range: scale the grey levels of each image so that all but one in a hundred fill the range, as those of
            volumes do; always so for `DARK_SETS`.
        texts: requests with `{name}`; each item has one of them.
        classes: those that are asked for, in the words of `class_words`; none stands for all.
    """

    absent_pct: int = 0
    per_case: int | None = None
    per_patient: int | None = None
    most: int | None = None
    longest_px: int | None = None
    in_colour: bool = True
    use_full_range: bool = False
    texts: Sequence[str] = TEXTS
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.absent_pct <= 90:
            raise RequestError(f"absent_pct={self.absent_pct}", "It is a share in percent, 0..90", "Choose it there")
        for key in ("per_case", "per_patient", "most", "longest_px"):
            if getattr(self, key) is not None:
                check_positive(key, getattr(self, key))
        if not self.texts or any("{name}" not in text for text in self.texts):
            raise RequestError(f"texts={list(self.texts)}", "A request names its class", "Write {name} in each of them")


ALL = ItemRules()
"""Every class of every image, at its size."""


@dataclass(frozen=True, eq=False)
class _Ask:
    """A class of a case, with the findings that make up its mask; none of them where it is absent."""

    case: Case
    name: str
    findings: tuple[Finding, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.case.id}-mask-{self.name}"


def load_items(
    source: str,
    root: Path | str | None = None,
    *,
    seed: int,
    parts: int = PARTS,
    held: str = TEST,
    rules: ItemRules = ALL,
    **options: object,
) -> MaskSplits:
    """Read a set of images with masks, and divide it into items to learn from and items to score.

    Args:
        source: a name of `lightbox data list`, of a set with masks.
        root: its folder; None takes the one below the data root.
        seed: >= 0; holds out part `seed % parts`, see `held_images.rotated`, and draws the items.
        parts: >= 2, at most the number of patients.
        held: "test"; any other name holds out the part after it, such as "validation".
        rules: see `ItemRules`.
        options: of the reader, such as plane="sagittal".

    Raises:
        RequestError: what the reader refuses, a negative seed, two images of one name, or a split without any item.
    """
    result = with_sound_masks(read_dataset(source, root, **options))
    rules = replace(rules, use_full_range=rules.use_full_range or source in DARK_SETS)
    splits = divided_items(result.cases, seed=seed, parts=parts, held=held, rules=rules, source=source)
    return replace(splits, problems=result.problems)


def divided_items(
    cases: Sequence[Case],
    *,
    seed: int,
    parts: int = PARTS,
    held: str = TEST,
    rules: ItemRules = ALL,
    source: str = "these cases",
) -> MaskSplits:
    """Divide cases whose masks are sound; arguments and errors as `load_items`, `source` names them in messages."""
    divided = rotated(cases, parts=parts, seed=seed, held=held)
    repeated = [case_id for case_id, n in Counter(case.id for case in divided).items() if n > 1]
    if repeated:
        raise RequestError(
            f"{len(repeated)} ids of {source} that several images have, such as '{repeated[0]}'",
            "An item names its image by that id",
            "Read one split of the set, or give each image a name of its own",
        )
    counts = Counter(dict.fromkeys(LEFT_OUT, 0))
    counts.update(cases=len(divided), cases_listed_twice=len(cases) - len(divided))
    train = _items([case for case in divided if case.split == TRAIN], seed, rules, counts)
    trained = {item.name for item in train if item.is_present}
    scored = _items([case for case in divided if case.split == held], seed, rules, counts, trained)
    for name, items in ((TRAIN, train), (held, scored)):
        if not items:
            raise RequestError(
                f"The split '{name}' of {source} with seed={seed} and parts={parts}",
                f"None of its {sum(case.split == name for case in divided)} images has a class to ask for, "
                "or none that the training images show",
                "Choose fewer parts, another seed or looser rules, or give more images",
            )
        counts[f"{name}_items"] = len(items)
        counts[f"{name}_items_absent"] = sum(not item.is_present for item in items)
        counts[f"{name}_images"] = len({item.case_id for item in items})
    return MaskSplits(tuple(train), tuple(scored), dict(counts))


def mask_requests(split: Split[Asked]) -> Iterator[tuple[Sample[Asked], MaskItem]]:
    """Those questions of a split that ask for a class's mask, in their order, and each in the form of this module."""
    for sample in split.samples:
        asked, case = sample.record, sample.case_id
        if asked.task == MASK and asked.mask is not None:
            image = np.asarray(split.images[sample.image])
            about = (asked.name, asked.text, asked.mask, case, asked.patient_id or case, asked.modality)
            item = MaskItem(sample.id, image, *about)
            yield sample, item


def class_words(name: str) -> str:
    """The words for a class of a set: lower case, and all of it in an image as one.

    Example:
        >>> class_words("Right Lung"), class_words("nucleus")
        ('right lung', 'nuclei')
    """
    return WORDS.get(name.lower(), name.lower())


def _items(
    cases: Sequence[Case], seed: int, rules: ItemRules, counts: Counter[str], trained: set[str] | None = None
) -> list[MaskItem]:
    """Items of the cases of a split, of the classes `trained` alone where they are given."""
    chosen = _chosen(_asks(cases, counts), seed, rules, counts, trained)
    made: dict[str, MaskItem] = {}
    case_id, image = "", None
    # by case and not in the drawn order: slices of one volume are read from it together
    for ask in sorted(chosen, key=lambda ask: ask.case.id):
        if ask.case.id != case_id:
            case_id, image = ask.case.id, _pixels(ask.case, rules)
        if image is None:
            counts["unreadable_images"] += 1
            continue
        mask = _mask(ask, image.shape[:2])
        if ask.findings and not mask.any():
            counts["masks_lost_by_shrinking"] += 1
            continue
        text = rules.texts[text_key(f"text {seed} {ask.id}") % len(rules.texts)].format(name=ask.name)
        case = ask.case
        made[ask.id] = MaskItem(ask.id, image, ask.name, text, mask, case.id, case.patient_id, case.modality)
    return [made[ask.id] for ask in chosen if ask.id in made]


def _asks(cases: Sequence[Case], counts: Counter[str]) -> list[_Ask]:
    """Every class that a case shows or is known to lack, and whose mask is therefore known."""
    asks = []
    for case in cases:
        by_name: dict[str, list[Finding]] = {}
        for finding in case.findings:
            by_name.setdefault(class_words(finding.name), []).append(finding)
        for name, findings in by_name.items():
            present = tuple(finding for finding in findings if finding.present)
            # a class of which one finding is not drawn has no whole mask
            if any(finding.mask is None and not getattr(finding, "parts", ()) for finding in present):
                counts["present_without_a_mask"] += 1
            else:
                asks.append(_Ask(case, name, present))
    return asks


def _chosen(
    asks: Sequence[_Ask], seed: int, rules: ItemRules, counts: Counter[str], trained: set[str] | None
) -> list[_Ask]:
    """What the rules leave of the requests that can be made, in a drawn order."""

    def drawn(ask: _Ask) -> int:
        return text_key(f"{seed} {ask.id}")

    if trained is not None:
        counts["classes_not_trained"] += sum(ask.name not in trained for ask in asks)
        asks = [ask for ask in asks if ask.name in trained]
    if rules.classes:
        counts["other_classes"] += sum(ask.name not in rules.classes for ask in asks)
        asks = [ask for ask in asks if ask.name in rules.classes]
    ordered = sorted(asks, key=drawn)
    n_of: Counter[str] = Counter()  # by case, by patient, and by class and whether it is there
    chosen: dict[str, _Ask] = {}
    reasons: dict[str, str] = {}
    # absent ones once more: how many of them are asked for goes by how many are there, and those come in between
    for ask in (*ordered, *(ask for ask in ordered if not ask.findings)):
        if ask.id in chosen:
            continue
        reasons[ask.id] = _reason(ask, rules, n_of)
        if not reasons[ask.id]:
            n_of.update((f"case {ask.case.id}", f"patient {ask.case.patient_id}", f"{bool(ask.findings)} {ask.name}"))
            chosen[ask.id] = ask
    counts.update(filter(None, reasons.values()))
    first = sorted(chosen.values(), key=drawn)[: rules.most]
    counts["over_most"] += len(chosen) - len(first)
    return first


def _reason(ask: _Ask, rules: ItemRules, n_of: Counter[str]) -> str:
    """Why a class is not asked for, as a count calls it; "" where it is."""
    if not ask.findings:
        n_absent = n_of[f"False {ask.name}"] + 1
        if n_absent * (100 - rules.absent_pct) > n_of[f"True {ask.name}"] * rules.absent_pct:
            return "absent_beyond_share"
    if rules.per_case is not None and n_of[f"case {ask.case.id}"] >= rules.per_case:
        return "over_per_case"
    patient = ask.case.patient_id
    if rules.per_patient is not None and patient is not None and n_of[f"patient {patient}"] >= rules.per_patient:
        return "over_per_patient"
    return ""


def _pixels(case: Case, rules: ItemRules) -> np.ndarray | None:
    """The first image of a case, on which its masks are; None where it cannot be read."""
    try:
        image = load_pixels(case.images[0], in_colour=rules.in_colour)
    except RequestError:
        return None
    image = _in_full_range(image) if rules.use_full_range else image
    height, width = image.shape[:2]
    scale = min(1.0, (rules.longest_px or max(height, width)) / max(height, width))
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    if size_wh == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize(size_wh, Image.Resampling.BILINEAR))


def _in_full_range(image: np.ndarray) -> np.ndarray:
    """The same levels for all channels, so that colours stay; a constant image stays as it is."""
    low, high = np.percentile(image, (LOW_PERCENTILE, HIGH_PERCENTILE))
    if low == high:
        return image
    return np.rint(((image - low) * 255.0 / (high - low)).clip(0, 255)).astype(np.uint8)


def _mask(ask: _Ask, image_hw: tuple[int, int]) -> np.ndarray:
    """The union of the findings' masks at an image's size; of a shrunk one, the pixels that it covers by half."""
    masks = [mask for finding in ask.findings if (mask := mask_of(finding)) is not None]
    if not masks:
        return np.zeros(image_hw, dtype=bool)
    union = np.logical_or.reduce(masks)
    if union.shape == image_hw:
        return union
    cover = Image.fromarray(union.astype(np.uint8) * 255).resize(image_hw[::-1], Image.Resampling.BOX)
    return np.asarray(cover) >= 128
