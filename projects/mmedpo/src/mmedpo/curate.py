"""Pairs: what is preferred to what, by which change, and how relevant that is. Pure functions. No torch.

| kind | preferred | dispreferred |
|---|---|---|
| text | the true answer | a false one of as many words, under the same image |
| image | the true image | the image with its findings noised, with the same answer |

Grades of text pairs are known by construction: a near miss is false in one way (the other option, the other side, the
zone beside it, one finding more), a far one in more, an absurd one is nothing that the question could be about.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.facts import NUMBER_WORDS, with_article
from lightbox.phantom.ontology import CLASS_NAMES, CLASSES, PLACES, place_phrase
from lightbox.phantom.report_facts import ABSENCES, WHERE, is_true, report_facts, sentences_of
from mmedpo import noise
from mmedpo.config import Config
from mmedpo.data import NAMING, REPORT, Asked, lesion

TEXT, IMAGE = "text", "image"
RELEVANCE = {"near": 0.9, "far": 0.6, "absurd": 0.1, "rests": 0.9, "apart": 0.1}
"""How relevant a pair is, by its grade; of image pairs, whether the answer rests on what is noised. Ours."""
FAR_SHARE = 1 / 3
ABSURD = {
    1: ("heart", "chest", "lungs", "image"),
    2: ("left heart", "right chest"),
    3: ("left upper heart", "right lower chest", "left middle heart"),
}
"""By number of words, what answers no question of the phantom; all words that the tiny tokenizer knows."""
OTHER_SIDE = {"right": "left", "left": "right"}
PRESENCES = ("there is {a_name} .", "{a_name} is seen .", "{name} is present .")
"""For each of `ABSENCES` what says the opposite in as many words."""
_PLACES = [place_phrase(side, place) for side, place in PLACES]
_CLASS = {own.name: own for own in CLASSES}


@dataclass(frozen=True)
class Curated:
    """Pairs, and the split that holds their images: first those of the questions, then the noised ones."""

    pairs: list[Sample[Pair]]
    split: Split[Asked]


def curate(cfg: Config, split: Split[Asked], maps: np.ndarray | None = None) -> Curated:
    """The pairs of an arm. Only questions about images with a finding make pairs, so that both kinds have as many.

    A pair depends on its question and the seed alone. `maps` are those of `noise.masks_of`, one an image of the split.

    Raises:
        RequestError: where no pair is left, and as `noise`.
    """
    asked = [sample for sample in split.samples if lesion(sample.record) is not None]
    pairs: list[Sample[Pair]] = []
    if cfg.data.pairs in ("text", "union"):
        pairs += [text_pair(sample, absurd_pct=cfg.data.absurd_pct, seed=cfg.run.seed) for sample in asked]
    shown = split
    if cfg.data.pairs in ("image", "union"):
        images, row_of = noised_images(cfg, asked, split, maps)
        ids = [f"{split.case_ids[row]}/noised" for row in row_of]
        shown = replace(split, images=[*split.images, *images], case_ids=[*split.case_ids, *ids])
        how = f"{cfg.data.mask} mask, step {cfg.data.noise_step}"
        pairs += [image_pair(sample, row_of[sample.image], how=how) for sample in asked if sample.image in row_of]
    if not pairs:
        raise RequestError(
            f"{len(split.samples)} questions about images of split '{split.name}'",
            f"No image shows a finding that a mask of kind {cfg.data.mask} covers, so there is nothing to prefer",
            "Raise data.n_train, or choose another data.mask",
        )
    return Curated(sorted(pairs, key=lambda pair: (pair.image, pair.id)), shown)


def text_pair(sample: Sample[Asked], *, absurd_pct: float, seed: int) -> Sample[Pair]:
    """A false answer of a drawn grade; a question without one of that grade gets a near miss, which every one has."""
    rng = np.random.default_rng(seed_of(seed, sample.id, TEXT))
    grade = "absurd" if rng.random() * 100 < absurd_pct else "far" if rng.random() < FAR_SHARE else "near"
    choices = rivals(sample.record)
    grade = grade if choices[grade] else "near"
    rejected = choices[grade][int(rng.integers(len(choices[grade])))]
    how = f"{sample.record.kind}: {grade}, {len(choices[grade])} choices"
    return _pair(sample, TEXT, rejected, grade, how=how, row=sample.image)


def image_pair(sample: Sample[Asked], row: int, *, how: str) -> Sample[Pair]:
    """The same answer under the image of a row."""
    grade = "rests" if rests_on_findings(sample.record) else "apart"
    return _pair(sample, IMAGE, sample.record.answer, grade, how=how, row=row)


def noised_images(
    cfg: Config, asked: Sequence[Sample[Asked]], split: Split[Asked], maps: np.ndarray | None
) -> tuple[list[np.ndarray], dict[int, int]]:
    """One noised copy of each image that is asked about, and by row of the image the row that its copy will have.

    An image on which the mask covers nothing has no copy.
    """
    lesions = {sample.image: mask for sample in asked if (mask := lesion(sample.record)) is not None}
    if not (rows := list(lesions)):
        return [], {}
    seeds = [seed_of(cfg.run.seed, split.case_ids[row], IMAGE) for row in rows]
    masks = noise.masks_of(cfg.data.mask, np.stack(list(lesions.values())), seeds, None if maps is None else maps[rows])
    covered = np.flatnonzero(masks.any(axis=(1, 2)))
    images = np.stack([np.asarray(split.images[rows[place]]) for place in covered]) if len(covered) else masks[:0]
    copies = noise.noised(images, masks[covered], cfg.data.noise_step, [seeds[place] + 1 for place in covered])
    return list(copies), {rows[place]: len(split.images) + n for n, place in enumerate(covered.tolist())}


def rests_on_findings(asked: Asked) -> bool:
    """Whether the answer would be another one without the findings of the image."""
    if asked.options == ("yes", "no"):
        return asked.answer == "yes" and asked.kind != "threshold"  # the heart is no finding
    return True


def rivals(asked: Asked) -> dict[str, list[str]]:
    """False answers by grade: near, far, absurd; each has as many words as the true one. There is a near one always."""
    answer = asked.answer
    if asked.kind == REPORT:
        return report_rivals(answer)
    if asked.is_closed:
        near = [option for option in asked.options if option != answer]
        far = [name for name in CLASS_NAMES if name not in asked.options] if near[0] in CLASS_NAMES else []
    elif asked.kind == "count":
        number = NUMBER_WORDS.index(answer)
        near = [word for k, word in enumerate(NUMBER_WORDS) if abs(k - number) == 1]
        far = [word for k, word in enumerate(NUMBER_WORDS) if abs(k - number) > 1]
    elif asked.kind == NAMING:
        others = [name for name in CLASS_NAMES if name != answer]
        near = [name for name in others if _looks_like(name, answer)] or others
        far = [name for name in others if not _looks_like(name, answer)]
    else:
        near, far = _other_places(answer)
    return {"near": near, "far": far, "absurd": list(ABSURD[len(answer.split())])}


def report_rivals(report: str) -> dict[str, list[str]]:
    """False reports by grade, each with as many words: one false sentence, all that can be false, an absurd one."""
    sentences, truth = sentences_of(report), report_facts(report)
    false = [_falsified(sentence) for sentence in sentences]
    absurd = [_falsified(sentence, name=ABSURD[1][0]) for sentence in sentences]
    near, absurd = (
        [" ".join([*sentences[:k], other, *sentences[k + 1 :]]) for k, other in enumerate(own) if other != sentences[k]]
        for own in (false, absurd)
    )
    choices = {"near": near, "far": [" ".join(false)] if len(near) > 1 else [], "absurd": absurd}
    return {
        grade: [text for text in texts if not all(is_true(fact, truth) for fact in report_facts(text))]
        for grade, texts in choices.items()
    }


def seed_of(seed: int, name: str, what: str) -> int:
    """The seed of one item's draws: it depends on nothing but the run's seed, the item and what is drawn."""
    return zlib.crc32(f"{seed}/{name}/{what}".encode())


def _pair(sample: Sample[Asked], kind: str, rejected: str, grade: str, *, how: str, row: int) -> Sample[Pair]:
    own, name = sample.record, f"{sample.id}/{kind}"
    record = Pair(name, own.text, own.answer, rejected, kind, RELEVANCE[grade], grade, how, rejected_image=row)
    return Sample(name, record, sample.case_id, sample.image)


def _looks_like(name: str, other: str) -> bool:
    if other not in _CLASS:
        return False
    return _CLASS[name].shape == _CLASS[other].shape or _CLASS[name].density == _CLASS[other].density


def _other_places(answer: str) -> tuple[list[str], list[str]]:
    """Places with as many words that differ in side or height, and in both."""
    side, height = answer.split(" ", 1)
    near, far = [], []
    for place in _PLACES:
        other_side, other_height = place.split(" ", 1)
        differences = (other_side != side) + (other_height != height)
        if differences and len(place.split()) == len(answer.split()):
            (near if differences == 1 else far).append(place)
    return near, far


def _falsified(sentence: str, *, name: str = "") -> str:
    """A finding on the other side, or one that is absent said to be there; any other sentence as it is.

    Where a `name` is given, only sentences of absence change: it is called absent in the place of what they name.
    """
    for pattern, presence in zip(ABSENCES, PRESENCES, strict=True):
        if match := pattern.fullmatch(sentence):
            own = match[1]
            return sentence.replace(own, name) if name else presence.format(name=own, a_name=with_article(own))
    if name or not WHERE.search(sentence):
        return sentence
    return re.sub(r"\b(?:right|left)\b", lambda side: OTHER_SIDE[side[0]], sentence)
