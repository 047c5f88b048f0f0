"""Pairs: what is preferred to what, by which change, and how relevant that is. Pure functions. No torch.

| kind | preferred | dispreferred |
|---|---|---|
| text | the true answer | a false one of as many words, under the same image |
| image | the true image | the image with its findings noised, with the same answer |

Grades of text pairs are known by construction, see `lightbox.paper.phantom_rivals`. False answers to questions of real
sets are those of `lightbox.paper.answer_rivals`, or come with released pairs.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.answer_rivals import pool_of
from lightbox.paper.held_images import released_pairs
from lightbox.paper.phantom_rivals import rivals
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.samples import Sample, Split
from mmedpo import noise
from mmedpo.config import Config
from mmedpo.data import Asked, lesion

TEXT, IMAGE = "text", "image"
GIVEN = "given"
RELEVANCE = {"near": 0.9, "far": 0.6, "absurd": 0.1, "rests": 0.9, "apart": 0.1, GIVEN: 1.0}
"""How relevant a pair is, by its grade; of image pairs, whether the answer rests on what is noised. Ours; a released
pair has a number of its own."""
FAR_SHARE = 1 / 3


@dataclass(frozen=True)
class Curated:
    """Pairs, and the split that holds their images: first those of the questions, then the noised ones."""

    pairs: list[Sample[Pair]]
    split: Split[Asked]


def curate(cfg: Config, split: Split[Asked], maps: np.ndarray | None = None) -> Curated:
    """The pairs of an arm, as many of each kind; of phantoms, only questions about images with a finding make pairs.

    A pair depends on its question and the seed alone; on real images its other answer also on the answers of the split.
    `maps` are those of `noise.masks_of`, one an image of the split.

    Raises:
        RequestError: where no pair is left, and as `noise`.
    """
    asked, texts = given_texts(cfg, split) if cfg.data.given else made_texts(cfg, split)
    pairs: list[Sample[Pair]] = texts if cfg.data.pairs in ("text", "union") else []
    shown = split
    if cfg.data.pairs in ("image", "union"):
        images, row_of = noised_images(cfg, asked, split, maps)
        ids = [f"{split.case_ids[row]}/noised" for row in row_of]
        shown = replace(split, images=[*split.images, *images], case_ids=[*split.case_ids, *ids])
        how = f"{cfg.data.mask} mask, step {cfg.data.noise_step}"
        real = not cfg.data.is_phantom
        there = [own for own in asked if own.image in row_of]
        pairs = [*pairs, *(image_pair(own, row_of[own.image], how=how, is_real=real) for own in there)]
    if not pairs:
        raise RequestError(
            f"{len(split.samples)} questions about images of split '{split.name}'",
            f"No false answer is known, and a mask of kind {cfg.data.mask} covers no image: there is nothing to prefer",
            "Raise data.n_train, or choose another data.mask",
        )
    return Curated(sorted(pairs, key=lambda pair: (pair.image, pair.id)), shown)


def made_texts(cfg: Config, split: Split[Asked]) -> tuple[list[Sample[Asked]], list[Sample[Pair]]]:
    """The questions that have a false answer, and a text pair of each."""
    if cfg.data.is_phantom:
        offered = ((own, rivals(own.record)) for own in split.samples if lesion(own.record) is not None)
    else:
        pool = pool_of(own.record for own in split.samples)
        offered = ((own, pool.rivals(own.record)) for own in split.samples)  # one by one: each holds thousands
    pct, seed = cfg.data.absurd_pct, cfg.run.seed
    answerable = ((own, choices) for own, choices in offered if any(choices.values()))
    made = [(own, text_pair(own, choices, absurd_pct=pct, seed=seed)) for own, choices in answerable]
    return [own for own, _ in made], [pair for _, pair in made]


def given_texts(cfg: Config, split: Split[Asked]) -> tuple[list[Sample[Asked]], list[Sample[Pair]]]:
    """The questions of the released pairs about images of a split, and those pairs with their own relevance."""
    released = released_pairs(Path(cfg.data.given))
    asked, texts = [], []
    for row, case_id in enumerate(split.case_ids):
        for own in released.get(case_id, ()):
            asked.append(Sample(own.id, Asked(own.id, own.prompt, own.chosen), case_id, row))
            pair = _pair(asked[-1], TEXT, own.rejected, GIVEN, how="released", row=row)
            texts.append(pair.with_record(relevance=own.relevance))
    return asked, texts


def text_pair(
    sample: Sample[Asked], choices: Mapping[str, Sequence[str]], *, absurd_pct: float, seed: int
) -> Sample[Pair]:
    """A false answer of a drawn grade, from choices by grade; where it has none, of the first grade that has one."""
    rng = np.random.default_rng(seed_of(seed, sample.id, TEXT))
    grade = "absurd" if rng.random() * 100 < absurd_pct else "far" if rng.random() < FAR_SHARE else "near"
    grade = grade if choices.get(grade) else next(name for name, own in choices.items() if own)
    rejected = choices[grade][int(rng.integers(len(choices[grade])))]
    how = f"{sample.record.kind}: {grade}, {len(choices[grade])} choices"
    return _pair(sample, TEXT, rejected, grade, how=how, row=sample.image)


def image_pair(sample: Sample[Asked], row: int, *, how: str, is_real: bool) -> Sample[Pair]:
    """The same answer under the image of a row; of a real image it is not known on what an answer rests."""
    grade = "rests" if is_real or rests_on_findings(sample.record) else "apart"
    return _pair(sample, IMAGE, sample.record.answer, grade, how=how, row=row)


def noised_images(
    cfg: Config, asked: Sequence[Sample[Asked]], split: Split[Asked], maps: np.ndarray | None
) -> tuple[list[np.ndarray], dict[int, int]]:
    """One noised copy of each image that is asked about, and by row of the image the row that its copy will have.

    An image on which the mask covers nothing has no copy.
    """
    if cfg.data.is_phantom:
        lesions = {own.image: mask for own in asked if (mask := lesion(own.record)) is not None}
    else:  # the kinds of masks that real images may have do not read them
        lesions = {own.image: np.zeros(np.asarray(split.images[own.image]).shape, bool) for own in asked}
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


def seed_of(seed: int, name: str, what: str) -> int:
    """The seed of one item's draws: it depends on nothing but the run's seed, the item and what is drawn."""
    return zlib.crc32(f"{seed}/{name}/{what}".encode())


def _pair(sample: Sample[Asked], kind: str, rejected: str, grade: str, *, how: str, row: int) -> Sample[Pair]:
    own, name = sample.record, f"{sample.id}/{kind}"
    record = Pair(name, own.text, own.answer, rejected, kind, RELEVANCE[grade], grade, how, rejected_image=row)
    return Sample(name, record, sample.case_id, sample.image)
