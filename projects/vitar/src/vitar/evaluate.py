"""Score a policy: episodes under image, blank and shuffled, and with a random and the true box shown. No torch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lightbox.paper import baselines, predictions, turn_examples
from lightbox.paper.conditions import IMAGE, shown_rows
from lightbox.paper.samples import Split
from lightbox.runs import folders
from vitar.config import BASELINES, Config
from vitar.data import Asked, load_splits, seed_of, tasks_of
from vitar.rewards import Result
from vitar.scores import METRICS, ScoreRow, score, score_answer, score_set, tally

if TYPE_CHECKING:  # they import torch, and baselines are scored without
    from vitar.looking import Looks
    from vitar.model import Policy
    from vitar.rollout import Episode

_log = logging.getLogger(__name__)


def evaluate(
    cfg: Config, policy: "Policy", split: Split[Asked], *, folder: Path, looks: "Looks | None" = None
) -> pa.Table:
    """Play and score under every condition; write scores.parquet, predictions.jsonl and examples.

    Args:
        cfg: sizes, and whose boxes are shown.
        policy: trained or not.
        split: questions with their original images.
        folder: where the files go; its card gets the failures by condition.
        looks: reads attention of the first `eval.looks` items, and hides their findings; None does neither.

    Returns:
        The table of scores, sorted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[ScoreRow] = []
    written: list[predictions.Written] = []
    counts: dict[str, dict[str, float]] = {}
    usual: list[Episode] = []
    seeds = [seed_of(cfg.run.seed, sample.id) for sample in split.samples]
    for under, images in shown_rows(split, seed=cfg.run.seed).items():
        kinds = cfg.shown_boxes if under == IMAGE else ("own",)
        for kind, episodes in policy.play(tasks_of(cfg, split, images), seeds, boxes=kinds).items():
            condition = under if kind == "own" else kind
            pairs = list(zip(split.samples, episodes, strict=True))
            own = [score(sample, condition, one, view_px=cfg.model.image_px) for sample, one in pairs]
            if under == IMAGE and looks is not None:
                for row, one in zip(own[: cfg.eval.looks], episodes, strict=False):
                    row |= looks.scores(one)
            rows += [*own, score_set(own, condition)]
            written += [predictions.Written(sample, condition, said(one)) for sample, one in pairs]
            counts[condition] = tally(episodes)
            if condition == IMAGE:
                usual = episodes
                shown = [examples_of(split, place, one) for place, one in enumerate(episodes)]
                turn_examples.write_examples(
                    folder,
                    turn_examples.some_of_each([own.record.kind for own in split.samples], shown),
                    is_synthetic=cfg.data.is_phantom,
                )
            _log.info("%s: %d episodes under condition %s", cfg.experiment, len(episodes), condition)
    if looks is not None:
        rows += looks.flip_rows(split, usual, seeds)
    predictions.write_predictions(folder, written)
    folders.add_to_card(folder, {"episodes": counts})
    return folders.write_scores(folder, rows, METRICS)


def said(episode: "Episode") -> str:
    """What the policy said, a line a turn."""
    return "\n".join(text.strip() for text in episode.texts)


def examples_of(split: Split[Asked], place: int, episode: "Episode") -> turn_examples.Spoken:
    """What a reader sees of an item: the original with both boxes, and each turn with what it was shown."""
    sample, result = split.samples[place], episode.result
    images = [seen.images[0] if seen.images else None for seen in episode.observations]
    return turn_examples.Spoken(
        sample.id,
        episode.task.image,
        sample.record.boxes,
        result.boxes,
        list(zip(episode.texts, images, strict=True)),
        {"question": sample.record.text, "gold answer": sample.record.answer, "kind": sample.record.kind},
        {"answer": (episode.answer or "").strip(), "failures": ", ".join(episode.failures)},
        is_right=bool(score(sample, IMAGE, episode, view_px=1)["correct"]),
    )


def guess_rows(cfg: Config, train: Split[Asked], scored: Split[Asked], method: str) -> list[ScoreRow]:
    """Rows of the score table for a baseline."""
    answers = baselines.BY_METHOD[method](train.samples, scored.samples)
    own = [
        score_answer(sample, IMAGE, Result(0, (), False, answer, sample.record.answer), cfg.model.image_px)
        for sample, answer in zip(scored.samples, answers, strict=True)
    ]
    return [*own, score_set(own, IMAGE)]


def beside_score(cfg: Config, train: Split[Asked], scored: Split[Asked]) -> dict[str, object]:
    """What a score must be read beside: accuracy of the baselines on the same items."""
    rows = {method: guess_rows(cfg, train, scored, method)[:-1] for method in BASELINES}
    means = {method: sum(float(row["correct"]) for row in own) / len(own) for method, own in rows.items()}
    return baselines.beside_score(cfg, train, scored, means)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    train, scored = load_splits(cfg, with_images=False)
    rows = guess_rows(cfg, train, scored, cfg.objective.method)
    baselines.run(cfg, folder, rows, metrics=METRICS, n_counted=len(train.samples))
