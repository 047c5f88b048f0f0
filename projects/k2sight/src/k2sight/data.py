"""Who is asked what: one sample is an image and a class, with all boxes of that class, or none. No torch.

On the phantom every image holds a first finding and, beside it, distractors that share all but one attribute with it:
without them whatever stands out would be the answer. A class is a triple of the ontology; training draws known triples
alone, and each part that is scored draws its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from k2sight.config import Config
from k2sight.descriptions import KNOWN, PARTS, Classes, define, phantom_classes, real_classes
from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.knowledge import ATTRIBUTES
from lightbox.paper import samples as kit
from lightbox.paper.samples import Sample, Split
from lightbox.phantom import ontology
from lightbox.phantom.ontology import TRIPLES
from lightbox.phantom.splits import triple_mask
from lightbox.readers.images import letterbox_box
from lightbox.readers.stores import image_size_wh
from lightbox.records import Box, Case, Finding

CHUNK = 256
MOST_CHUNKS = 24
PART_SEEDS = 100_000
"""Case seeds between two parts of a split, so that they share no image."""
REAL = "all"
SHAPES = {word: value for value, word in ontology.SHAPE_WORDS.items()}
DENSITIES = {word: value for value, word in ontology.DENSITY_WORDS.items()}


@dataclass(frozen=True, slots=True)
class Target(Finding):
    """A finding that is asked for.

    `attributes` are the values of its class. `part` is the part of the data set's classes that it belongs to.
    `definition` is what the prompt says that it means. `neighbours` are findings of the same image that differ from it
    in one attribute, by that attribute; `chosen_kind` names one of them, drawn at random, "" where there is none.
    """

    part: str = REAL
    definition: str = ""
    neighbours: dict[str, "Target"] = field(default_factory=dict)
    chosen_kind: str = ""

    @property
    def chosen(self) -> "Target":
        """The neighbour whose definition the prompt "swapped" gives."""
        return self.neighbours[self.chosen_kind]


def load_splits(cfg: Config) -> tuple[Split[Target], Split[Target]]:
    """Training samples and those to be scored, with the definitions of the arm.

    Args:
        cfg: `data.*` and `run.seed` decide.

    Raises:
        RequestError: an unreadable data set, an empty split, or a class that nothing describes.
    """
    seed, data = cfg.run.seed, cfg.data
    if data.is_phantom:
        classes = phantom_classes(seed)
        train = _drawn(cfg, "train", (KNOWN,), data.n_train, classes)
        scored = _drawn(cfg, data.eval_split, tuple(data.parts), data.n_test, classes)
    else:
        train, scored = (_thinned(split, cfg) for split in _real_splits(cfg))
        known = sorted({sample.record.name for sample in train.samples})
        names = sorted({*known, *(sample.record.name for sample in scored.samples)})
        classes = real_classes(names, known, seed) if data.prompt != "name" else None
    used = max(1, round(len(train.samples) * data.share_pct / 100))
    train = replace(train, samples=train.samples[:used])
    if classes is None:
        return train, scored
    how = data.definition
    train, scored = (replace(split, samples=defined(split.samples, classes, how)) for split in (train, scored))
    return train, scored


def defined(samples: Sequence[Sample[Target]], classes: Classes, how: str) -> list[Sample[Target]]:
    """The same samples with other definitions, see `define`; "swapped" is a neighbour's and drops who has none."""
    if how == "swapped":
        return [
            sample.with_record(definition=define(classes, sample.record.chosen.name, "true"))
            for sample in samples
            if sample.record.chosen_kind
        ]
    return [
        sample.with_record(definition=define(classes, sample.record.name, how, item=place))
        for place, sample in enumerate(samples)
    ]


def classes_of(cfg: Config, split: Split[Target]) -> Classes:
    """The classes that prompts of the evaluation may name: all of the phantom, or those of a split of real data."""
    if cfg.data.is_phantom:
        return phantom_classes(cfg.run.seed)
    names = sorted({sample.record.name for sample in split.samples})
    return real_classes(names, names, cfg.run.seed)


# ---- the phantom


def _drawn(cfg: Config, name: str, parts: Sequence[str], n: int, classes: Classes) -> Split[Target]:
    """`n` samples of each part, with the images they show."""
    samples: list[Sample[Target]] = []
    images, case_ids = [], []
    for number, part in enumerate(parts, start=1):
        wanted = n * number
        for case in _cases(cfg, name, part):
            targets = targets_of(case, classes, part, n=cfg.data.questions_per_case, absent_pct=cfg.data.absent_pct)
            targets = targets[: wanted - len(samples)]
            if targets:
                row = len(images)
                images += case.images[:1]
                case_ids.append(f"{part}/{case.id}")
                samples += [Sample(f"{part}/{case.id}/{t.name}", t, case_ids[-1], row) for t in targets]
            if len(samples) == wanted:
                break
        else:
            raise RequestError(
                f"{n} items of part {part} are asked for", f"{PART_SEEDS} images hold fewer", "Ask for fewer"
            )
    return Split(name, samples, images, case_ids)


def _cases(cfg: Config, name: str, part: str) -> Iterator[Case]:
    knobs = phantom.Knobs(
        vocabulary="triples",
        triples=part,
        distractors=cfg.data.distractors,
        lesion_scale_pct=cfg.data.lesion_scale_pct,
        shifted=name == "test_shifted",
    )
    first = PART_SEEDS * PARTS.index(part)
    seeds = phantom.seed_range(name, cfg.run.seed, first + PART_SEEDS)[first:]
    for start in range(0, PART_SEEDS, CHUNK):
        yield from _chunk(seeds[start : start + CHUNK], knobs)


@lru_cache(maxsize=MOST_CHUNKS)
def _chunk(seeds: range, knobs: phantom.Knobs) -> list[Case]:
    """The arms of a seed share their cases, and a worker trains several of them."""
    return phantom.draw_cases(seeds, knobs, questions_per_case=0)


def targets_of(case: Case, classes: Classes, part: str, *, n: int, absent_pct: float) -> list[Target]:
    """What is asked about a phantom case: `n` classes at most, some of them absent.

    An absent one shares two attributes with one that is there, so that it is missed by who does not read the third.
    """
    rng = np.random.default_rng([int(case.id.rpartition("-")[2]), PARTS.index(part)])
    here = _classes_in(case, classes, part)
    members = np.flatnonzero(triple_mask(part))
    targets: dict[str, Target] = {}
    for triple in rng.permutation(list(here)).tolist()[:n]:
        target = here[triple]
        if kinds := sorted(target.neighbours):
            target = replace(target, chosen_kind=kinds[rng.integers(len(kinds))])
        if rng.random() * 100 < absent_pct:
            near = [k for k in members if _differs_in(TRIPLES[k], _values(target)) and k not in here]
            if near:
                target = _target(int(near[rng.integers(len(near))]), (), classes, part, present=False)
        targets.setdefault(target.name, target)
    return list(targets.values())


def _classes_in(case: Case, classes: Classes, part: str) -> dict[int, Target]:
    """The classes that a case shows, by number of their triple, each with all its boxes and its neighbours."""
    boxes: dict[int, list[Box]] = {}
    for finding in case.findings:
        boxes.setdefault(class_of(finding), []).extend(finding.boxes)
    alone = {triple: _target(triple, own, classes, part) for triple, own in boxes.items()}
    return {
        triple: replace(
            target,
            neighbours={
                kind: other for other in alone.values() if (kind := _differs_in(_values(other), _values(target)))
            },
        )
        for triple, target in alone.items()
    }


def class_of(finding: Finding) -> int:
    """Number of the triple of a phantom finding."""
    said = finding.attributes
    place = said["location"].removeprefix(f"{said['side']} ").removesuffix(" zone").removesuffix(" angle")
    location = f"{said['side']} {place}" if place in ontology.ZONES else place
    return ontology.triple_index(SHAPES[said["shape"]], DENSITIES[said["density"]], location)


def _target(triple: int, boxes: Sequence[Box], classes: Classes, part: str, *, present: bool = True) -> Target:
    values = dict(zip(ATTRIBUTES, TRIPLES[triple], strict=True))
    return Target(classes.names[triple], present, values, tuple(boxes), part=part)


def _values(target: Finding) -> tuple[str, ...]:
    return tuple(target.attributes.values())


def _differs_in(a: Sequence[str], b: Sequence[str]) -> str:
    """The one attribute in which two triples differ; "" where it is none or more than one."""
    kinds = [kind for kind, x, y in zip(ATTRIBUTES, a, b, strict=True) if x != y]
    return kinds[0] if len(kinds) == 1 else ""


# ---- real data


def _real_splits(cfg: Config) -> tuple[Split[Target], Split[Target]]:
    """Classes of each case, present or called absent, one sample each; boxes are fractions of the square shown."""

    def pick(case: Case) -> list[Target]:
        boxes: dict[str, list[Box]] = {}
        for finding in case.findings:
            if finding.boxes or not finding.present:
                own = boxes.setdefault(finding.name, [])
                own += [in_square(box, case.images[0]) for box in finding.boxes]
        return [Target(name, bool(own), boxes=tuple(own)) for name, own in boxes.items()]

    return kit.load_splits(cfg, pick, what="finding with a box")


def _thinned(split: Split[Target], cfg: Config) -> Split[Target]:
    """All present findings and so many absent ones, drawn at random, that they are `data.absent_pct` of all at most.

    A set that looked at every image for every class calls most of them absent.
    """
    present = sum(sample.record.present for sample in split.samples)
    absent = [place for place, sample in enumerate(split.samples) if not sample.record.present]
    most = round(present * cfg.data.absent_pct / (100 - cfg.data.absent_pct))
    left_out = set(np.random.default_rng([cfg.run.seed, 0]).permutation(absent)[most:].tolist())
    return replace(split, samples=[sample for place, sample in enumerate(split.samples) if place not in left_out])


def in_square(box: Box, image: np.ndarray | Path) -> Box:
    """A box of an image as a fraction of the square that the image is shown in."""
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
    else:
        width, height = image_size_wh(image)
    return letterbox_box(box, image_hw=(height, width), image_px=max(height, width))
