"""Score a model: boxes under the conditions image, blank and shuffled and under other prompts, per item. No torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from k2sight import scores
from k2sight.config import Config
from k2sight.data import Target, classes_of, defined, load_splits
from lightbox.backbones.box_text import BoxReading
from lightbox.paper import baselines, box_baselines
from lightbox.paper.conditions import IMAGE, shown_rows
from lightbox.paper.overlay import Mark, draw_boxes
from lightbox.paper.samples import Sample, Split
from lightbox.readers.images import load_image
from lightbox.runs import folders
from lightbox.runs.examples import Example, Picture

if TYPE_CHECKING:  # it imports torch, and baselines are scored without
    from k2sight.model import Grounder

N_EXAMPLES, SHOWN_PX = 8, 256
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
            write_examples(folder, split.samples, readings, split)
        _log.info("%s: %d items under condition %s", cfg.experiment, len(readings), condition)
    for text in cfg.eval.texts:
        asked = defined(split.samples, classes_of(cfg, split), text)
        readings = grounder.draw(asked, split, [sample.image for sample in asked])
        score = scores.score_moved if text == "swapped" else scores.score
        rows += [score(s, text, r) for s, r in zip(asked, readings, strict=True)]
        _log.info("%s: %d items with prompt %s", cfg.experiment, len(readings), text)
    return folders.write_scores(folder, rows, scores.METRICS)


def write_examples(
    folder: Path, samples: Sequence[Sample[Target]], readings: Sequence[BoxReading], split: Split[Target]
) -> None:
    """Write the first samples, at most one an image, with their true and their drawn boxes."""
    (folder / folders.EXAMPLE_IMAGES).mkdir(exist_ok=True)
    pairs = {s.image: (s, r) for s, r in reversed(list(zip(samples, readings, strict=True)))}
    rows = []
    for place, (sample, reading) in enumerate(sorted(pairs.values(), key=lambda pair: pair[0].image)[:N_EXAMPLES]):
        target = sample.record
        marks = [Mark("", box, is_true=True) for box in target.boxes]
        marks += [Mark("", box.box, box.score) for box in reading.boxes]
        pixels = load_image(split.images[sample.image], image_px=SHOWN_PX)
        name = f"{folders.EXAMPLE_IMAGES}/{place}.png"
        draw_boxes(pixels, marks).save(folder / name)
        overlap = scores.score(sample, IMAGE, reading)["best_iou"]
        told = {"asked for": target.name, "which means": target.definition, "part": target.part}
        told |= {"looks like": ", ".join(target.attributes.values())}
        said = {"boxes": str(len(reading.boxes)), "best overlap": "" if overlap is None else f"{overlap:.2f}"}
        example = Example(
            sample.id,
            (Picture(name),),
            tuple((label, text) for label, text in told.items() if text),
            tuple((label, text) for label, text in said.items() if text),
            is_right=not reading.boxes if overlap is None else float(overlap) >= 0.5,  # type: ignore[arg-type]
        )
        rows.append(example.to_row())
    folders.write_examples(folder, rows)


def guess_rows(train: Split[Target], scored: Split[Target], method: str) -> list[scores.ScoreRow]:
    """Rows of the score table for a baseline."""
    boxes = box_baselines.BY_METHOD[method](train, scored)
    readings = [BoxReading(tuple(own), is_parsed=True, n_broken=0) for own in boxes]
    rows = [scores.score(s, IMAGE, r) for s, r in zip(scored.samples, readings, strict=True)]
    return rows + scores.score_set(scored.samples, IMAGE, readings)


def beside_score(cfg: Config, train: Split[Target], scored: Split[Target]) -> dict[str, object]:
    """What a score must be read beside: mean best overlap of the baselines on the same items."""
    methods = ("location_prior", "blob") if train.samples else ()
    means = {}
    for method in methods:
        values = [row["best_iou"] for row in guess_rows(train, scored, method) if row["best_iou"] is not None]
        means[method] = sum(map(float, values)) / len(values) if values else 0.0
    return baselines.beside_score(cfg, train, scored, means)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    train, scored = load_splits(cfg)
    rows = guess_rows(train, scored, cfg.objective.method)
    baselines.run(cfg, folder, rows, metrics=scores.METRICS, n_counted=len(train.samples))
