"""Score a model: answers and masks under every condition, and masks in modalities that are held out. No torch."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lightbox.paper import baselines, examples, predictions, real_masks
from lightbox.paper.conditions import BLANK, IMAGE, SHUFFLED
from lightbox.paper.drawn_regions import MASK, OWN, REGION, Asked, shuffled_rows
from lightbox.paper.mask_items import MaskItem, mask_requests
from lightbox.paper.mask_rivals import drawer, mean_by_modality
from lightbox.paper.mask_scores import Outlines, chosen_threshold
from lightbox.paper.pixel_answers import Answered, Routed, answer_by_task
from lightbox.paper.pixel_items import SEG
from lightbox.paper.samples import Split
from lightbox.paper.unseen_masks import unseen_splits
from lightbox.phantom.region_prompts import text_key
from lightbox.runs import folders
from medplib.config import BASELINES, Config
from medplib.data import LEARNT, SCORED, item_of, load_splits, target_of
from medplib.scores import METRICS, ScoreRow, score

if TYPE_CHECKING:  # they import torch, and baselines are scored without
    from lightbox.paper.pixel_vlm import PixelVLM

RIGHT = 0.5  # score from which an example counts so
_log = logging.getLogger(__name__)


def evaluate(
    cfg: Config,
    model: "PixelVLM",
    split: Split[Asked],
    *,
    folder: Path,
    routed: Routed = nullcontext,
    outlines: Outlines | None = None,
) -> pa.Table:
    """Answer, draw and score under every condition; write scores.parquet, predictions.jsonl and examples.

    Args:
        cfg: lengths and further regions.
        model: trained or not.
        split: questions with their regions and true masks.
        folder: where the files go.
        routed: see `answer_by_task`.
        outlines: see `score_drawn`; of masks under the own picture.

    Returns:
        The table of scores, sorted.
    """
    rows: list[ScoreRow] = []
    written: list[predictions.Written] = []
    learnt = LEARNT.get(cfg.objective.method, SCORED)
    threshold = threshold_of(cfg, model, routed) if MASK in learnt and cfg.data.is_phantom else None
    if threshold is not None:
        folders.add_to_card(folder, {"threshold": threshold})
    shown = {IMAGE: None, BLANK: [len(split.images)] * len(split.samples)}
    shown[SHUFFLED] = shuffled_rows(split, seed=cfg.run.seed)
    asked = {condition: (split, OWN, images) for condition, images in shown.items()}
    about_regions = replace(split, samples=[sample for sample in split.samples if sample.record.task == REGION])
    asked |= {kind: (about_regions, kind, None) for kind in cfg.eval.regions}
    asked |= {condition: (held, OWN, None) for condition, held in unseen(cfg).items()}
    for condition, (own, region, images) in asked.items():
        answers = answer_all(cfg, model, own, images=images, region=region, routed=routed)
        for sample, (text, logits) in zip(own.samples, answers, strict=True):
            row = score(sample, condition, text, logits, threshold, outlines if condition == IMAGE else None)
            rows.append(row | {"own": row["score"] if sample.record.task in learnt else None})
            written.append(predictions.Written(sample, condition, text))
        if condition == IMAGE:
            right = [float(row["score"] or 0) >= RIGHT for row in rows]
            pairs = zip(own.samples, answers, right, strict=True)
            seen = [examples.Shown(sample, text, "", is_right=r) for sample, (text, _), r in pairs]
            mixed = sorted(seen, key=lambda one: text_key(one.sample.id))  # some of each task
            examples.write_examples(folder, mixed, split, is_synthetic=cfg.data.is_phantom)
        _log.info("%s: %d items under condition %s", cfg.experiment, len(answers), condition)
    predictions.write_predictions(folder, written)
    return folders.write_scores(folder, rows, METRICS)


def answer_all(
    cfg: Config,
    model: "PixelVLM",
    split: Split[Asked],
    *,
    region: str,
    images: Sequence[int] | None = None,
    routed: Routed = nullcontext,
) -> list[Answered]:
    """The answer to each sample of a split, about its own or another image, and the logits of its masks, h w each."""
    samples, images = split.samples, images or [sample.image for sample in split.samples]
    items = [item_of(sample, split, region=region, image=own) for sample, own in zip(samples, images, strict=True)]
    sizes = {"answer_tokens": cfg.eval.answer_tokens, "batch_size": cfg.eval.batch_size}
    return answer_by_task(model, items, [sample.record.task for sample in samples], **sizes, routed=routed)


def threshold_of(cfg: Config, model: "PixelVLM", routed: Routed = nullcontext) -> float:
    """The threshold with the best Dice on validation's requests; a score of validation itself is not to be read so.

    Of the phantom: a real set has no images to spare that were not learnt from.
    """
    _, split = load_splits(replace(cfg, data=replace(cfg.data, eval_split="validation")))
    asked = [(sample, item.mask) for sample, item in mask_requests(split)]
    answers = answer_all(cfg, model, replace(split, samples=[s for s, _ in asked]), region=OWN, routed=routed)
    return chosen_threshold([logits for _, logits in answers], [mask for _, mask in asked])


def unseen(cfg: Config) -> dict[str, Split[Asked]]:
    """Requests for masks in held-out modalities, by condition; none where the arm does not ask for them."""
    data = cfg.data
    sizes = {"seed": cfg.run.seed, "n": data.n_test, "scale_pct": data.lesion_scale_pct}
    return unseen_splits(data.eval_split, **sizes) if cfg.eval.unseen else {}


def drawn_rows(
    cfg: Config,
    scored: Split[Asked],
    draw: Callable[[Sequence[MaskItem]], Sequence[np.ndarray]],
    outlines: Outlines | None = None,
) -> list[ScoreRow]:
    """Rows of an arm that draws masks and says nothing: of requests for masks alone; `draw` gives their logits."""
    rows = []
    for condition, split in ({IMAGE: scored} | unseen(cfg)).items():
        pairs = list(mask_requests(split))
        drawn = draw([item for _, item in pairs])
        for (sample, _), own in zip(pairs, drawn, strict=True):
            rows.append(score(sample, condition, SEG, [own], None, outlines if condition == IMAGE else None))
    return [row | {"own": row["score"]} for row in rows]


def guess_rows(train: Split[Asked], scored: Split[Asked], method: str) -> list[ScoreRow]:
    """Rows of the score table for a baseline: the commonest answer, and of masks none or the class's mean."""
    guesses = baselines.BY_METHOD[method](train.samples, scored.samples)
    learnt, asked = ([item for _, item in mask_requests(split)] for split in (train, scored))
    means = mean_by_modality(learnt, asked) if method == "question_only" else {}
    rows = []
    for sample, guess in zip(scored.samples, guesses, strict=True):
        mean = means.get(sample.id)
        said = target_of(replace(sample.record, answer=guess)) if sample.record.task != MASK else ""
        rows.append(score(sample, IMAGE, said if mean is None else SEG, [] if mean is None else [mean]))
    return rows


def beside_score(cfg: Config, train: Split[Asked], scored: Split[Asked]) -> dict[str, object]:
    """What a score must be read beside: the baselines on the same items."""
    means = {}
    for method in BASELINES:
        rows = guess_rows(train, scored, method)
        for metric in ("region", "presence", "dice"):
            values = [float(row[metric]) for row in rows if row[metric] is not None]
            means |= {f"{method}, {metric}": sum(values) / len(values)} if values else {}
    return real_masks.beside_score(cfg, train, scored, means, parts=cfg.data.parts)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    method, (train, scored) = cfg.objective.method, load_splits(cfg)
    if method in BASELINES:
        rows = guess_rows(train, scored, method)
    else:
        rows = drawn_rows(cfg, scored, drawer(method, [item for _, item in mask_requests(train)]))
    baselines.run(cfg, folder, rows, metrics=METRICS, n_counted=len(train.samples))
