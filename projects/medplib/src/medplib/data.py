"""Who learns from what: samples of each stage, and a sample as an item that a model is shown. No torch."""

from typing import Any

import numpy as np

from lightbox.paper.conditions import GREY
from lightbox.paper.drawn_regions import CAPTION, MASK, OWN, PRESENCE, REGION, Asked, load_asked
from lightbox.paper.pixel_items import HERE, SEG, PixelItem
from lightbox.paper.real_masks import real_splits, stretched_as
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.modalities import TRAINED
from lightbox.phantom.region_questions import PRESENT
from medplib.config import ALIGN, GROUNDING, VL, Config

SCORED = (REGION, PRESENCE, MASK)
LEARNT = {ALIGN: (CAPTION,), VL: (REGION, PRESENCE), GROUNDING: (MASK,)}
"""Tasks by stage; stage 4 and joint training learn all that is scored."""


def load_splits(cfg: Config) -> tuple[Split[Asked], Split[Asked]]:
    """Questions to learn from, of every task, and those to be scored; of a real set requests for masks alone.

    Args:
        cfg: `data.*` and `run.seed` decide; `eval.regions` whether regions are drawn as every kind of prompt.
    """
    data, seed = cfg.data, cfg.run.seed
    if not data.is_phantom:
        return real_splits(cfg, parts=data.parts)
    sizes = {"per_picture": data.questions_per_case, "scale_pct": data.lesion_scale_pct}
    settings: dict[str, Any] = {"seed": seed, "modalities": TRAINED, **sizes}
    train = load_asked("train", tasks=dict.fromkeys((*SCORED, CAPTION), data.n_train), **settings)
    tests = dict.fromkeys(SCORED, data.n_test)
    return train, load_asked(data.eval_split, tasks=tests, with_prompts=bool(cfg.eval.regions), **settings)


def learnt_by(cfg: Config, split: Split[Asked]) -> list[Sample[Asked]]:
    """What the arm's stage learns from, in a drawn order.

    Stage 4 and joint training mix tasks by `data.mask_pct`: as many of each as that ratio allows.
    """
    by_task = {task: [s for s in split.samples if s.record.task == task] for task in (*SCORED, CAPTION)}
    if cfg.objective.method in LEARNT:
        return [sample for task in LEARNT[cfg.objective.method] for sample in by_task[task]]
    rng = np.random.default_rng([cfg.run.seed, 11])
    masks, texts = by_task[MASK], [*by_task[REGION], *by_task[PRESENCE]]
    share = cfg.data.mask_pct / 100
    total = min(len(masks) / share, len(texts) / (1 - share))
    picked = []
    for own, part in ((masks, share), (texts, 1 - share)):
        picked += [own[k] for k in rng.permutation(len(own))[: max(1, round(total * part))]]
    return picked


def item_of(
    sample: Sample[Asked],
    split: Split[Asked],
    *,
    region: str = OWN,
    image: int | None = None,
    is_answered: bool = False,
) -> PixelItem:
    """A sample as a model is shown it.

    Args:
        sample: of the split.
        split: holds its image.
        region: which of the sample's `regions` a region question is shown.
        image: row of the image in the place of its own, stretched to its size; one past the last is the blank one.
        is_answered: with the answer and its masks, to learn from.
    """
    asked, row = sample.record, sample.image if image is None else image
    own = np.asarray(split.images[sample.image])
    pixels = np.full_like(own, GREY) if row == len(split.images) else stretched_as(np.asarray(split.images[row]), own)
    text, regions = asked.text, ()
    if asked.task == REGION:
        text, regions = text.replace("the region", f"the region {HERE}", 1), (asked.regions[region],)
    if not is_answered:
        return PixelItem(pixels, text, regions)
    masks = (asked.mask,) if asked.task == MASK and asked.mask is not None and asked.mask.any() else ()
    return PixelItem(pixels, text, regions, target_of(asked), masks)


def target_of(asked: Asked) -> str:
    """The answer as it is learnt; it repeats the class, so that the state before <SEG> is that of its name.

    Example:
        >>> target_of(Asked("1", "segment the optic disc .", "present", task="mask", name="optic disc"))
        'the optic disc <SEG> .'
    """
    if asked.task not in (MASK, PRESENCE):
        return asked.answer
    said = SEG if asked.task == MASK and asked.answer == PRESENT else f"is {asked.answer}"
    return f"the {asked.name} {said} ."
