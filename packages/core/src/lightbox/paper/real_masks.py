"""Real sets of images with masks, asked for in the words in which the phantom's masks are. No torch.

Such a set has masks and nothing else: no captions, no questions about regions. So only what draws masks learns from it,
and goes on from weights that learnt from the phantom to read and to answer. A division into parts and the choice of
requests are `mask_items`'; the kind of a question is its class, so that means that weigh kinds alike weigh classes so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightbox.backbones.weights import digest_of_folder
from lightbox.errors import RequestError
from lightbox.paper import baselines, composition
from lightbox.paper.drawn_regions import MASK, Asked
from lightbox.paper.mask_items import ItemRules, MaskItem, MaskSplits, load_items
from lightbox.paper.samples import Sample, Split
from lightbox.paper.schema import PHANTOM, PaperConfig
from lightbox.phantom.region_questions import ABSENT, PRESENT
from lightbox.readers.mask_sets import MASK_SETS

ABSENT_PCT = 25
"""Of the requests for a class, how many in 100 meet images without it, as the phantom's, where there are as many."""
MOST_SETS = 4
"""Kept in memory, shrunk: the arms of a seed share them, and a worker trains several."""


def real_splits(cfg: PaperConfig, *, parts: int) -> tuple[Split[Asked], Split[Asked]]:
    """Requests to learn from and requests to be scored, of different patients, or images where patients are unknown.

    Args:
        cfg: `data.source`, `root`, `kinds` and `eval_split`, `model.image_px` and `run.seed` decide; `n_train` and
            `n_test` are at most.
        parts: into which the patients are divided, of which each seed holds out another one.

    Raises:
        RequestError: as `mask_items.load_items`.
    """
    data, items = cfg.data, _loaded(cfg, parts)
    return (
        as_split("train", items.train[: data.n_train]),
        as_split(data.eval_split, items.held[: data.n_test]),
    )


def check_source(cfg: PaperConfig, *, asks_more: bool, is_unseen: bool) -> None:
    """Refuse a real set where it is asked for what it does not have.

    Args:
        cfg: `data.source` decides.
        asks_more: the method learns or measures more than masks.
        is_unseen: held-out modalities are to be scored too.

    Raises:
        RequestError: naming the setting.
    """
    if cfg.data.is_phantom:
        return
    if asks_more:
        raise RequestError(
            f"data.source is {cfg.data.source} and objective.method is {cfg.objective.method}",
            "A real set has masks here, and no captions or questions about regions",
            "Train that stage on the phantom, and from its weights objective.method=grounding on the set",
        )
    if is_unseen:
        raise RequestError(
            f"data.source is {cfg.data.source} and eval.unseen is true",
            "Held-out modalities are the phantom's, and nothing learnt from the set is about them",
            "Set eval.unseen=false",
        )


def as_split(name: str, items: Sequence[MaskItem]) -> Split[Asked]:
    """Requests for masks as questions of a split, with each image once."""
    row_of = {case_id: row for row, case_id in enumerate(dict.fromkeys(item.case_id for item in items))}
    image_of = {item.case_id: item.image for item in items}
    samples = [Sample(item.id, asked_of(item), item.case_id, row_of[item.case_id]) for item in items]
    return Split(name, samples, [image_of[case_id] for case_id in row_of], list(row_of))


def asked_of(item: MaskItem) -> Asked:
    """A request for a mask as a question, whose answer says whether its class is there."""
    options = PRESENT, ABSENT
    index = options.index(PRESENT if item.is_present else ABSENT)
    about: dict[str, Any] = {"task": MASK, "modality": item.modality, "name": item.name, "mask": item.mask}
    about["patient_id"] = item.patient_id or ""
    return Asked(item.id, item.question, options[index], options, index, kind=item.name, **about)


def stretched_as(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """An image, h w or h w 3, at the height and width of another one: frames of a real set differ, masks must fit."""
    if image.shape[:2] == like.shape[:2]:
        return image
    height, width = like.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def inputs(cfg: PaperConfig) -> dict[str, str]:
    """See `composition.inputs`; also an arm without weights reads images and masks, and a set may have no text."""
    if cfg.data.is_phantom:
        return composition.inputs(cfg)
    suffixes = (".json", ".csv", *composition.IMAGES)
    return composition.inputs(_on_phantom(cfg)) | {"data": digest_of_folder(Path(cfg.data.root), suffixes=suffixes)}


def chosen(cfg: PaperConfig) -> tuple[str, ...]:
    """See `composition.chosen`; the reader of a set of masks, which is none of `catalog`."""
    own = () if cfg.data.is_phantom else (MASK_SETS[cfg.data.source].module,)
    return (*composition.chosen(_on_phantom(cfg)), *own)


def beside_score(
    cfg: PaperConfig, train: Split[Any], scored: Split[Any], scores: Mapping[str, float], *, parts: int
) -> dict[str, object]:
    """See `baselines.beside_score`; of a real set also what is not asked for. No patient is on two sides."""
    facts = baselines.beside_score(_on_phantom(cfg), train, scored, scores)
    if cfg.data.is_phantom:
        return facts
    items = _loaded(cfg, parts)
    return facts | {"leaks": [], "requests": items.counts, "unreadable": [str(problem) for problem in items.problems]}


def _loaded(cfg: PaperConfig, parts: int) -> MaskSplits:
    data = cfg.data
    rules = ItemRules(absent_pct=ABSENT_PCT, longest_px=cfg.model.image_px, classes=tuple(data.kinds))
    return _read(data.source, data.root, cfg.run.seed, parts, data.eval_split, rules)


@lru_cache(maxsize=MOST_SETS)
def _read(source: str, root: str, seed: int, parts: int, held: str, rules: ItemRules) -> MaskSplits:
    return load_items(source, root, seed=seed, parts=parts, held=held, rules=rules)


def _on_phantom(cfg: PaperConfig) -> PaperConfig:
    """The same configuration without its data set, whose reader the shared functions would look for elsewhere."""
    return replace(cfg, data=replace(cfg.data, source=PHANTOM, root="", kinds=[]))
