"""Score a model: boxes under the conditions image, blank and shuffled and under other prompts, per item. No torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from k2sight import scores
from k2sight.config import Config
from k2sight.data import Target, classes_of, defined, in_square, load_splits
from lightbox.backbones.box_text import BoxReading
from lightbox.knowledge import ATTRIBUTES
from lightbox.paper import baselines, box_baselines, box_examples
from lightbox.paper.conditions import IMAGE, shown_rows
from lightbox.paper.samples import Sample, Split
from lightbox.runs import folders

if TYPE_CHECKING:  # it imports torch, and baselines are scored without
    from k2sight.model import Grounder

RIGHT, MISSES_SHOWN = 0.5, 2
NEEDS_ONTOLOGY = ("swapped", "nearest")
_log = logging.getLogger(__name__)


def evaluate(cfg: Config, grounder: "Grounder", split: Split[Target], *, folder: Path) -> pa.Table:
    """Draw boxes under every condition and score them; write scores.parquet and examples.

    Args:
        cfg: prompts and lengths.
        grounder: the model, trained or not.
        split: findings with their boxes, definitions as the arm has them.
        folder: where the files go.

    Returns:
        The table of scores, sorted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[scores.ScoreRow] = []
    for condition, images in shown_rows(split, seed=cfg.run.seed).items():
        readings = grounder.draw(split.samples, split, images)
        rows += [scores.score(s, condition, r) for s, r in zip(split.samples, readings, strict=True)]
        rows += scores.score_set(split.samples, condition, readings)
        if condition == IMAGE:
            box_examples.write_examples(folder, examples_of(split.samples, readings), split)
        _log.info("%s: %d items under condition %s", cfg.experiment, len(readings), condition)
    texts = [text for text in cfg.eval.texts if cfg.data.is_phantom or text not in NEEDS_ONTOLOGY]
    for text in texts:
        asked = defined(split.samples, classes_of(cfg, split), text)
        readings = grounder.draw(asked, split, [sample.image for sample in asked])
        rows += [scores.score(s, text, r) for s, r in zip(asked, readings, strict=True)]
        _log.info("%s: %d items with prompt %s", cfg.experiment, len(readings), text)
    return folders.write_scores(folder, rows, scores.METRICS)


def examples_of(samples: Sequence[Sample[Target]], readings: Sequence[BoxReading]) -> list[box_examples.Shown]:
    """Items to look at: for each attribute two misses beside a look-alike of another value, then the others."""
    chosen: dict[int, box_examples.Shown] = {}  # by image: a page shows each once
    every = [(sample, shown_of(sample, reading)) for sample, reading in zip(samples, readings, strict=True)]
    for kind in ATTRIBUTES:
        missed: dict[int, box_examples.Shown] = {}
        for (sample, one), reading in zip(every, readings, strict=True):
            is_new = sample.image not in chosen and sample.image not in missed
            if len(missed) < MISSES_SHOWN and is_new and kind in sample.record.neighbours and not one.is_right:
                missed[sample.image] = shown_of(sample, reading, beside=kind)
        chosen |= missed
    return [*chosen.values(), *(shown for sample, shown in every if sample.image not in chosen)]


def shown_of(sample: Sample[Target], reading: BoxReading, *, beside: str = "") -> box_examples.Shown:
    """What a reader sees of an item: what was asked, what it looks like, what lies beside it, and what was drawn."""
    target, overlap = sample.record, scores.score(sample, IMAGE, reading)["paired_iou"]
    told = {"asked for": target.name, "which means": target.definition, "part": target.part}
    told |= {"looks like": ", ".join(target.attributes.values())}
    if beside:
        told[f"beside another {beside}"] = ", ".join(target.neighbours[beside].attributes.values())
    is_right = not reading.boxes if overlap is None else float(overlap) >= RIGHT
    return box_examples.Shown(sample, told, reading.boxes, overlap, is_right=is_right)


def guesses(train: Split[Target], scored: Split[Target], method: str) -> list[BoxReading]:
    """The boxes of a baseline for each scored sample."""
    boxes = box_baselines.BY_METHOD[method](train, scored)
    if method == "blob":  # it looks at the whole image, and truth is of the square around it
        images = [scored.images[sample.image] for sample in scored.samples]
        boxes = [
            [own._replace(box=in_square(own.box, image)) for own in its]
            for its, image in zip(boxes, images, strict=True)
        ]
    return [BoxReading(tuple(own), is_parsed=True, n_broken=0) for own in boxes]


def guess_rows(scored: Split[Target], readings: Sequence[BoxReading]) -> list[scores.ScoreRow]:
    """Rows of the score table for the boxes of a baseline, one a sample."""
    return [scores.score(s, IMAGE, r) for s, r in zip(scored.samples, readings, strict=True)]


def beside_score(cfg: Config, train: Split[Target], scored: Split[Target]) -> dict[str, object]:
    """What a score must be read beside: mean overlap of the baselines on the same items."""
    methods = ("location_prior", "blob") if train.samples else ()
    means = {}
    for method in methods:
        rows = guess_rows(scored, guesses(train, scored, method))
        values = [row["paired_iou"] for row in rows if row["paired_iou"] is not None]
        means[method] = sum(map(float, values)) / len(values) if values else 0.0
    return baselines.beside_score(cfg, train, scored, means)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    train, scored = load_splits(cfg)
    readings = guesses(train, scored, cfg.objective.method)
    rows = guess_rows(scored, readings) + scores.score_set(scored.samples, IMAGE, readings)
    baselines.run(cfg, folder, rows, metrics=scores.METRICS, n_counted=len(train.samples))
