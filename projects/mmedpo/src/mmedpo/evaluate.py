"""Score a model: answers and reports under image, blank and shuffled, and how far it looks, per item. No torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lightbox.paper import baselines, examples, predictions
from lightbox.paper.baselines import BY_METHOD
from lightbox.paper.conditions import IMAGE, shown_rows, shuffled_rows
from lightbox.paper.samples import Split
from lightbox.runs import folders
from mmedpo import noise
from mmedpo.config import BASELINES, Config
from mmedpo.curate import seed_of
from mmedpo.data import REPORT, Asked, lesion, load_biased, load_splits
from mmedpo.scores import METRICS, ScoreRow, score

if TYPE_CHECKING:  # it imports torch, and baselines are scored without
    from lightbox.paper.pair_learner import PairLearner

LOOKED_AT = "evaluate"
_log = logging.getLogger(__name__)


def evaluate(
    cfg: Config, learner: "PairLearner", split: Split[Asked], *, folder: Path, more_rows: Sequence[ScoreRow] = ()
) -> pa.Table:
    """Generate and score under every condition; write scores.parquet, predictions.jsonl and examples.

    Reports are written under their own image only: nothing reads what is reported of another one, and they take most
    of the time.

    Args:
        cfg: lengths, and the noise under which looking is measured.
        learner: the model, trained or not.
        split: questions and reports with their images.
        folder: where the files go.
        more_rows: of the table, made elsewhere.

    Returns:
        The table of scores, sorted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(more_rows)
    written: list[predictions.Written] = []
    suggested = priors(cfg, split)
    lengths = {True: cfg.eval.report_tokens, False: cfg.eval.answer_tokens}
    most = [lengths[sample.record.kind == REPORT] for sample in split.samples]
    for condition, images in shown_rows(split, seed=cfg.run.seed).items():
        here = [n for n, own in enumerate(split.samples) if condition == IMAGE or own.record.kind != REPORT]
        samples = [split.samples[n] for n in here]
        texts = learner.write_each(samples, split, [images[n] for n in here], [most[n] for n in here])
        own = [
            score(sample, condition, text, prior=suggested[n])
            for n, sample, text in zip(here, samples, texts, strict=True)
        ]
        if condition == IMAGE:
            for row, looks in zip(own, sensitivity(cfg, learner, split), strict=True):
                row |= looks
            shown = [
                examples.Shown(sample, text, "", is_right=row["correct"] == 1.0)
                for sample, text, row in zip(split.samples, texts, own, strict=True)
            ]
            examples.write_examples(folder, shown, split, is_synthetic=cfg.data.is_phantom)
        rows += own
        written += [predictions.Written(s, condition, t) for s, t in zip(samples, texts, strict=True)]
        _log.info("%s: %d items under condition %s", cfg.experiment, len(texts), condition)
    predictions.write_predictions(folder, written)
    return folders.write_scores(folder, rows, METRICS)


def sensitivity(cfg: Config, learner: "PairLearner", split: Split[Asked]) -> list[dict[str, float]]:
    """How much likelier the true answer is than with the findings noised, and than with as much noise elsewhere.

    On real images, than with all of the image noised, and than under another case's image.

    Returns:
        One dictionary a sample, in nats; empty where its image shows no finding.
    """
    is_real, samples = not cfg.data.is_phantom, split.samples
    whole = [
        np.ones(np.asarray(split.images[own.image]).shape, bool) if is_real else lesion(own.record) for own in samples
    ]
    lesions = {own.image: mask for own, mask in zip(samples, whole, strict=True) if mask is not None}
    if not lesions:
        return [{} for _ in samples]
    place = {row: number for number, row in enumerate(lesions)}
    images, inside = np.stack([np.asarray(split.images[row]) for row in lesions]), np.stack(list(lesions.values()))
    seeds = [seed_of(cfg.run.seed, split.case_ids[row], LOOKED_AT) for row in lesions]
    said = [(own.record.text, own.record.answer, own.image) for own in samples if own.image in place]
    usual = np.array(learner.said_logps(said, split))
    moved = [(prompt, answer, place[row]) for prompt, answer, row in said]
    outside = {} if is_real else {"sensitivity_out": noise.masks_of("random", inside, seeds)}
    falls = {}
    for name, masks in {"sensitivity_noised" if is_real else "sensitivity_in": inside, **outside}.items():
        copies = list(noise.noised(images, masks, cfg.eval.noise_step, [seed + 1 for seed in seeds]))
        falls[name] = (usual - learner.said_logps(moved, Split(split.name, [], copies, []))).tolist()
    if is_real:
        others = zip(said, shuffled_rows(split, seed=cfg.run.seed), strict=True)
        swapped = [(prompt, answer, other) for (prompt, answer, _), other in others]
        falls["sensitivity_other"] = (usual - learner.said_logps(swapped, split)).tolist()
    values = iter([dict(zip(falls, own, strict=True)) for own in zip(*falls.values(), strict=True)])
    return [next(values) if own.image in place else {} for own in samples]


def priors(cfg: Config, scored: Split[Asked]) -> list[str]:
    """The answer to each closed question that the start's biased questions suggest by their text; "" for others."""
    biased = load_biased(cfg, with_images=False)
    biased_texts = {sample.record.text for sample in biased.samples}
    guesses = baselines.question_only(biased.samples, scored.samples)
    return [
        guess if sample.record.is_closed and sample.record.text in biased_texts else ""
        for sample, guess in zip(scored.samples, guesses, strict=True)
    ]


def guess_rows(train: Split[Asked], scored: Split[Asked], method: str) -> list[ScoreRow]:
    """Rows of the score table for a baseline."""
    guesses = BY_METHOD[method](train.samples, scored.samples)
    return [score(sample, IMAGE, guess) for sample, guess in zip(scored.samples, guesses, strict=True)]


def beside_score(cfg: Config, train: Split[Asked], scored: Split[Asked]) -> dict[str, object]:
    """What a score must be read beside: the baselines on the same items, and what the biased text alone would give."""
    rows = {method: guess_rows(train, scored, method) for method in BASELINES} if train.samples else {}
    right = {method: [row["correct"] for row in own if row["correct"] is not None] for method, own in rows.items()}
    pairs = zip(scored.samples, priors(cfg, scored), strict=True)
    right["biased text, closed"] = [float(sample.record.answer == prior) for sample, prior in pairs if prior]
    means = {name: sum(map(float, own)) / max(len(own), 1) for name, own in right.items()}
    return baselines.beside_score(cfg, train, scored, means)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    train, scored = load_splits(cfg, with_images=False)
    rows = guess_rows(train, scored, cfg.objective.method)
    baselines.run(cfg, folder, rows, metrics=METRICS, n_counted=len(train.samples))
