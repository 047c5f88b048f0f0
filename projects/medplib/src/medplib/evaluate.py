"""Score a model: answers and masks under image, blank and shuffled; region questions under other regions. No torch."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lightbox.paper import baselines, examples, predictions
from lightbox.paper.conditions import BLANK, IMAGE, SHUFFLED
from lightbox.paper.drawn_regions import MASK, OWN, REGION, Asked
from lightbox.paper.mask_baselines import mean_masks
from lightbox.paper.pixel_items import SEG
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.region_prompts import text_key
from lightbox.runs import folders
from medplib.config import BASELINES, Config
from medplib.data import LEARNT, SCORED, item_of, load_splits, shuffled_rows, target_of
from medplib.scores import METRICS, ScoreRow, score

if TYPE_CHECKING:  # they import torch, and baselines are scored without
    from lightbox.paper.pixel_vlm import PixelVLM

RIGHT = 0.5  # score from which an example counts so
_log = logging.getLogger(__name__)


Routed = Callable[[str], AbstractContextManager[object]]
"""Gives for a task the context within which its questions are answered, such as that of an oracle router."""


def evaluate(
    cfg: Config, model: "PixelVLM", split: Split[Asked], *, folder: Path, routed: Routed = nullcontext
) -> pa.Table:
    """Answer, draw and score under every condition; write scores.parquet, predictions.jsonl and examples.

    Args:
        cfg: lengths and further regions.
        model: trained or not.
        split: questions with their regions and true masks.
        folder: where the files go.
        routed: see `Routed`.

    Returns:
        The table of scores, sorted.
    """
    rows: list[ScoreRow] = []
    written: list[predictions.Written] = []
    samples, learnt = split.samples, LEARNT.get(cfg.objective.method, SCORED)
    blanks = [len(split.images)] * len(samples)
    shown = {IMAGE: [s.image for s in samples], BLANK: blanks, SHUFFLED: shuffled_rows(split, seed=cfg.run.seed)}
    asked = {condition: (samples, images, OWN) for condition, images in shown.items()}
    about_regions = [sample for sample in samples if sample.record.task == REGION]
    asked |= {kind: (about_regions, [s.image for s in about_regions], kind) for kind in cfg.eval.regions}
    for condition, (own, images, region) in asked.items():
        answers = answer_all(cfg, model, own, split, images=images, region=region, routed=routed)
        for sample, (text, logits) in zip(own, answers, strict=True):
            row = score(sample, condition, text, logits)
            rows.append(row | {"own": row["score"] if sample.record.task in learnt else None})
        written += [predictions.Written(s, condition, text) for s, (text, _) in zip(own, answers, strict=True)]
        if condition == IMAGE:
            right = [float(row["score"] or 0) >= RIGHT for row in rows]
            seen = [examples.Shown(s, t, "", is_right=r) for s, (t, _), r in zip(own, answers, right, strict=True)]
            mixed = sorted(seen, key=lambda one: text_key(one.sample.id))  # some of each task
            examples.write_examples(folder, mixed, split, is_synthetic=True)
        _log.info("%s: %d items under condition %s", cfg.experiment, len(answers), condition)
    predictions.write_predictions(folder, written)
    return folders.write_scores(folder, rows, METRICS)


def answer_all(
    cfg: Config,
    model: "PixelVLM",
    samples: Sequence[Sample[Asked]],
    split: Split[Asked],
    *,
    images: Sequence[int],
    region: str,
    routed: Routed = nullcontext,
) -> list[tuple[str, list[np.ndarray]]]:
    """The answer to each sample, and the logits of the masks that it speaks of, h w each."""
    model.eval()
    # one task after another, so that an oracle has one expert for a batch
    order = sorted(range(len(samples)), key=lambda place: (samples[place].record.task, place))
    answers: dict[int, tuple[str, list[np.ndarray]]] = {}
    for is_mask in (False, True):
        places = [place for place in order if (samples[place].record.task == MASK) == is_mask]
        items = [item_of(samples[k], split, region=region, image=images[k]) for k in places]
        with routed(MASK if is_mask else REGION):
            read = model.answer(items, max_new_tokens=cfg.eval.answer_tokens, batch_size=cfg.eval.batch_size)
        answers |= {
            k: (" ".join(a.text.split()), [m.logits for m in a.masks]) for k, a in zip(places, read, strict=True)
        }
    return [answers[place] for place in range(len(samples))]


def guess_rows(train: Split[Asked], scored: Split[Asked], method: str) -> list[ScoreRow]:
    """Rows of the score table for a baseline: the commonest answer, and of masks none or the class's mean."""
    guesses = baselines.BY_METHOD[method](train.samples, scored.samples)
    means = mean_masks(train.samples) if method == "question_only" else {}
    rows = []
    for sample, guess in zip(scored.samples, guesses, strict=True):
        mean = means.get((sample.record.modality, sample.record.name)) if sample.record.task == MASK else None
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
            means[f"{method}, {metric}"] = sum(values) / max(len(values), 1)
    return baselines.beside_score(cfg, train, scored, means)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    train, scored = load_splits(cfg)
    rows = guess_rows(train, scored, cfg.objective.method)
    baselines.run(cfg, folder, rows, metrics=METRICS, n_counted=len(train.samples))
