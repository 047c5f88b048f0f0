"""Score boxes: intersection over union with the truth, under each image condition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightbox.paper import baselines, samples
from lightbox.paper.conditions import IMAGE, shown_rows
from lightbox.paper.features import load_features
from lightbox.paper.samples import Sample, Split
from lightbox.records import Box, Case, Finding, box_iou
from lightbox.runs import folders
from lightbox.testing.boxes.config import Config
from lightbox.testing.boxes.model import Head, box_of, name_ids


def load_findings(cfg: Config) -> tuple[Split[Finding], Split[Finding]]:
    """Findings with one box each and a name that no other finding of the case has."""

    def pick(case: Case) -> list[Finding]:
        names = [finding.name for finding in case.findings]
        return [f for f in case.findings if len(f.boxes) == 1 and names.count(f.name) == 1]

    return samples.load_splits(cfg, pick, what="finding with a box")


def evaluate(cfg: Config, head: Head, split: Split[Finding], *, folder: Path, cache: Path) -> None:
    """Draw a box for every finding under every condition, and write the scores."""
    vision = load_features(cfg.model, split, cache=cache)
    names = name_ids([sample.record.name for sample in split.samples])
    rows: list[dict[str, Any]] = []
    for condition, images in shown_rows(split, seed=cfg.run.seed).items():
        logits = head.eval()(vision[images], names).detach()
        rows += score(split.samples, [box_of(row) for row in logits], condition)
    folders.write_scores(folder, rows, ["iou"])
    folders.write_examples(folder, [])


def score(asked: Sequence[Sample[Finding]], boxes: Sequence[Box], condition: str) -> list[dict[str, Any]]:
    """Rows of the table of scores."""
    rows = []
    for sample, box in zip(asked, boxes, strict=True):
        row = {"item": sample.id, "condition": condition, "kind": sample.record.name}
        rows.append(row | {"iou": box_iou(box, sample.record.boxes[0])})
    return rows


def guess_rows(train: Split[Finding], scored: Split[Finding]) -> list[dict[str, Any]]:
    """The location prior's scores."""
    return score(scored.samples, baselines.location_prior(train.samples, scored.samples), IMAGE)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score the location prior and leave the files of a finished run."""
    train, scored = load_findings(cfg)
    baselines.run(cfg, folder, guess_rows(train, scored), metrics=["iou"], n_counted=len(train.samples))
