"""Who is asked what: one sample is an image and a class, with all boxes of that class, or none. No torch.

On the phantom every image holds a first finding and, beside it, distractors that share all but one attribute with it:
without them whatever stands out would be the answer. A class is a triple of the ontology; training draws known triples
alone, and each part that is scored draws its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from k2sight.config import Config
from k2sight.descriptions import Classes, define, phantom_classes, real_classes
from lightbox import phantom
from lightbox.paper import samples as kit
from lightbox.paper.samples import Sample, Split
from lightbox.phantom import ontology
from lightbox.phantom.splits import triple_mask
from lightbox.readers.images import image_size_wh, letterbox_box
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

    `attributes` are the values of its class. `part` is the part of the ontology that it belongs to. `definition` is
    what the prompt says that it means. `neighbours` are findings of the same image that differ from it in one
    attribute, by that attribute.
    """

    part: str = REAL
    definition: str = ""
    neighbours: dict[str, "Target"] = field(default_factory=dict)


def load_splits(cfg: Config, *, with_images: bool = True) -> tuple[Split[Target], Split[Target]]:
    """Training samples and those to be scored, with the definitions of the arm.

    Args:
        cfg: `data.*` and `run.seed` decide.
        with_images: False draws phantom texts only; they still need boxes, so it saves nothing here.

    Raises:
        RequestError: an unreadable data set, an empty split, or a class that nothing describes.
    """
    if not cfg.data.is_phantom:
        return _real_splits(cfg)
    seed, data = cfg.run.seed, cfg.data
    classes = phantom_classes(seed)
    train = _drawn(cfg, "train", ("known",), data.n_train, classes)
    scored = _drawn(cfg, data.eval_split, tuple(data.parts), data.n_test, classes)
    used = max(1, round(len(train.samples) * data.share_pct / 100))
    train = replace(train, samples=train.samples[:used])
    return with_definitions(train, classes, data.definition), with_definitions(scored, classes, data.definition)


def with_definitions(split: Split[Target], classes: Classes, how: str) -> Split[Target]:
    """The same samples with the definitions that an arm, or a prompt of the evaluation, has."""
    return replace(split, samples=defined(split.samples, classes, how))


def defined(samples: Sequence[Sample[Target]], classes: Classes, how: str) -> list[Sample[Target]]:
    """The same samples with other definitions; "swapped" is that of a neighbour, and leaves out who has none."""
    if how == "swapped":
        return [
            sample.with_record(definition=define(classes, next(iter(sample.record.neighbours.values())).name, "true"))
            for sample in samples
            if sample.record.neighbours
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
    for place, part in enumerate(parts):
        wanted = n * (place + 1)
        for case in _cases(cfg, name, place, part):
            targets = targets_of(case, classes, part, n=cfg.data.questions_per_case, absent_pct=cfg.data.absent_pct)
            targets = targets[: wanted - len(samples)]
            if targets:
                row = len(images)
                images += case.images[:1]
                case_ids.append(f"{part}/{case.id}")
                samples += [Sample(f"{part}/{case.id}/{t.name}", t, case_ids[-1], row) for t in targets]
            if len(samples) == wanted:
                break
    return Split(name, samples, images, case_ids)


def _cases(cfg: Config, name: str, place: int, part: str) -> Iterator[Case]:
    knobs = phantom.Knobs(
        vocabulary="triples",
        triples=part,
        distractors=cfg.data.distractors,
        lesion_scale_pct=cfg.data.lesion_scale_pct,
        shifted=name == "test_shifted",
    )
    seeds = phantom.seed_range(name, cfg.run.seed, 1_000_000)[PART_SEEDS * place : PART_SEEDS * (place + 1)]
    for start in itertools.count(0, CHUNK):
        yield from _chunk(seeds[start : start + CHUNK], knobs)


@lru_cache(maxsize=MOST_CHUNKS)
def _chunk(seeds: range, knobs: phantom.Knobs) -> list[Case]:
    """The arms of a seed share their cases, and a worker trains several of them."""
    return phantom.draw_cases(seeds, knobs, questions_per_case=0)


def targets_of(case: Case, classes: Classes, part: str, *, n: int, absent_pct: float) -> list[Target]:
    """What is asked about a phantom case: `n` classes at most, some of them absent.

    An absent one shares two attributes with one that is there, so that it is missed by who does not read the third.
    """
    rng = np.random.default_rng([int(case.id.rpartition("-")[2]), len(part)])
    here = _classes_in(case, classes, part)
    members = np.flatnonzero(triple_mask(part))
    order = rng.permutation(len(here)).tolist()
    targets: dict[str, Target] = {}
    for place in order[:n]:
        target = list(here.values())[place]
        if rng.random() * 100 < absent_pct:
            near = [k for k in members if _differs_in(ontology.TRIPLES[k], _values(target)) and k not in here]
            if near:
                place = int(near[rng.integers(len(near))])
                target = _target(place, (), classes, part, present=False)
        targets.setdefault(target.name, target)
    return list(targets.values())


def _classes_in(case: Case, classes: Classes, part: str) -> dict[int, Target]:
    """The classes that a case shows, by place in the ontology, each with all its boxes and its neighbours."""
    boxes: dict[int, list[Box]] = {}
    for finding in case.findings:
        boxes.setdefault(class_of(finding), []).extend(finding.boxes)
    alone = {place: _target(place, own, classes, part) for place, own in boxes.items()}
    return {
        place: replace(
            target,
            neighbours={
                kind: other for other in alone.values() if (kind := _differs_in(_values(other), _values(target)))
            },
        )
        for place, target in alone.items()
    }


def class_of(finding: Finding) -> int:
    """Place in the ontology of a phantom finding."""
    said = finding.attributes
    place = said["location"].removeprefix(f"{said['side']} ").removesuffix(" zone").removesuffix(" angle")
    location = f"{said['side']} {place}" if place in ontology.ZONES else place
    return ontology.triple_index(SHAPES[said["shape"]], DENSITIES[said["density"]], location)


def _target(place: int, boxes: Sequence[Box], classes: Classes, part: str, *, present: bool = True) -> Target:
    values = dict(zip(("shape", "density", "location"), ontology.TRIPLES[place], strict=True))
    return Target(classes.names[place], present, values, tuple(boxes), part=part)


def _values(target: Finding) -> tuple[str, ...]:
    return tuple(target.attributes.values())


def _differs_in(a: Sequence[str], b: Sequence[str]) -> str:
    """The one attribute in which two triples differ; "" where it is none or more than one."""
    kinds = [kind for kind, x, y in zip(("shape", "density", "location"), a, b, strict=True) if x != y]
    return kinds[0] if len(kinds) == 1 else ""


# ---- real data


def _real_splits(cfg: Config) -> tuple[Split[Target], Split[Target]]:
    """Classes with boxes, one sample each; a box is a fraction of the square that the image is shown in."""

    def pick(case: Case) -> list[Target]:
        boxes: dict[str, list[Box]] = {}
        for finding in case.findings:
            if finding.boxes or not finding.present:
                shown = [letterbox_box(box, image_hw=_hw(case), image_px=cfg.model.image_px) for box in finding.boxes]
                boxes.setdefault(finding.name, []).extend(shown)
        return [Target(name, bool(own), boxes=tuple(own)) for name, own in boxes.items()]

    train, scored = kit.load_splits(cfg, pick, what="finding with a box")
    if cfg.data.prompt == "name":
        return train, scored
    known = {sample.record.name for sample in train.samples}
    names = known | {sample.record.name for sample in scored.samples}
    classes = real_classes(sorted(names), sorted(known), cfg.run.seed)
    how = cfg.data.definition
    return with_definitions(train, classes, how), with_definitions(scored, classes, how)


def _hw(case: Case) -> tuple[int, int]:
    image = case.images[0]
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    width, height = image_size_wh(image)
    return height, width
