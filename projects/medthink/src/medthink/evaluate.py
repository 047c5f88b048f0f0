"""Score a model: greedy answers under the conditions image, blank and shuffled, per item, before any mean. No torch."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lightbox.eval.answers import stated_answer
from lightbox.paper import baselines, examples, predictions
from lightbox.paper.baselines import BY_METHOD
from lightbox.paper.conditions import IMAGE, shown_rows
from lightbox.paper.generated import Generated, add_generated, read_generated, with_generated
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.facts import parse
from lightbox.records import Question
from lightbox.runs import folders
from medthink import rationales, scores
from medthink.config import Config
from medthink.data import load_splits

if TYPE_CHECKING:  # it imports torch, and baselines are scored without
    from lightbox.paper.learner import Learner

ANSWER_FIRST = ("none", "explanation", "second_stage", "reader")
NO_RATIONALE, REFERENCE, OUT_OF_FOLD = "no_rationale", "reference", "out_of_fold"
READ_FROM = {"generated": "explanation", "generated_reasoning": "reasoning"}
"""Condition of the reader -> the arm whose rationales of the test items it reads."""
_SOLUTION = re.compile(r"\s*\bsolution\s*:\s*", re.IGNORECASE)
_ANSWER = re.compile(r"\s*\banswer\s*:\s*", re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Questions as asked under one condition.

    `rows` is the row in the split of the image that each is shown, one past the last for the blank one; None for no
    image.
    """

    condition: str
    questions: list[Sample[Question]]
    rows: list[int] | None
    max_new_tokens: int


def evaluate(
    cfg: Config,
    learner: "Learner",
    split: Split[Question],
    *,
    folder: Path,
    needs: Mapping[str, Path],
    more_rows: Sequence[scores.ScoreRow] = (),
) -> pa.Table:
    """Generate and score under every condition; write scores.parquet, predictions.jsonl, generated.json and examples.

    Args:
        cfg: strategy and lengths.
        learner: the model, trained or not.
        split: questions with reference answers and rationales.
        folder: where the files go.
        needs: folders of the arms whose generated rationales are read.
        more_rows: of the table, made elsewhere.

    Returns:
        The table of scores, sorted.
    """
    parse_facts = parse if cfg.data.is_phantom else None
    method = cfg.objective.method
    folder.mkdir(parents=True, exist_ok=True)
    reference = {sample.id: sample for sample in split.samples}
    rows = list(more_rows)
    generated: Generated = {}
    shown: list[examples.Shown] = []
    written: list[predictions.Written] = []
    for asked in conditions(cfg, split, needs):
        texts = learner.write(asked.questions, split, asked.rows, max_new_tokens=asked.max_new_tokens)
        is_judged = method not in ANSWER_FIRST or asked.condition == IMAGE
        reasons = [rationale_in(text, method) if is_judged else None for text in texts]
        for sample, text, rationale in zip(asked.questions, texts, reasons, strict=True):
            answer = None if method == "first_stage" else text
            gold = reference[sample.id]
            row = scores.score_text(gold, asked.condition, text=answer, rationale=rationale, parse_facts=parse_facts)
            rows.append(row)
            if answer is not None:
                written.append(predictions.Written(gold, asked.condition, answer))
            if asked.condition in (IMAGE, REFERENCE):
                read = sample.record.rationale if method in ("second_stage", "reader") else rationale
                shown.append(_example(gold, answer, read or "", is_right=row["correct"] == 1.0))
        if is_judged:
            pairs = zip(asked.questions, reasons, strict=True)
            generated[asked.condition] = {sample.id: reason for sample, reason in pairs if reason is not None}
        _log.info("%s: %d items under condition %s", cfg.experiment, len(texts), asked.condition)
    if method == "reasoning" and "none" in needs:
        scores.add_losses(rows, folders.read_scores(needs["none"]))
    if generated:
        add_generated(folder, generated)
    predictions.write_predictions(folder, written)
    examples.write_examples(folder, shown, split, is_synthetic=cfg.data.is_phantom)
    return folders.write_scores(folder, rows, scores.METRICS)


def conditions(cfg: Config, split: Split[Question], needs: Mapping[str, Path]) -> list[Asked]:
    """What is asked: the reader's texts, or each image condition.

    Stage 2 reads what stage 1 wrote under the same condition, since the image enters both stages. Strategies that
    answer first generate the answer only where the image is blank or shuffled: later tokens cannot change it.
    """
    if cfg.objective.method == "reader":
        texts = {
            NO_RATIONALE: [sample.with_record(rationale="") for sample in split.samples],
            REFERENCE: split.samples,
        }
        for condition, arm in READ_FROM.items():
            texts[condition] = with_generated(split.samples, read_generated(needs, arm, IMAGE), "rationale")
        hides_answer = cfg.objective.hides_answer
        return [
            Asked(condition, rationales.with_answer_hidden(questions, hides_answer=hides_answer), None, cfg.new_tokens)
            for condition, questions in texts.items()
        ]
    asked = []
    for condition, rows in shown_rows(split, seed=cfg.run.seed).items():
        questions = split.samples
        if cfg.objective.method == "second_stage":
            questions = with_generated(questions, read_generated(needs, "stage1", condition), "rationale")
        is_short = condition != IMAGE and cfg.objective.method in ANSWER_FIRST
        asked.append(Asked(condition, questions, rows, cfg.eval.answer_tokens if is_short else cfg.new_tokens))
    return asked


def rationale_in(text: str, method: str) -> str | None:
    """The rationale of a generated text; None for strategies that write none.

    Explanation: what follows the first "Solution:", "" where there is none. Reasoning: what precedes the last
    "Answer:", everything where there is none. Stage 1: everything.

    Example:
        >>> rationale_in("the answer is ( a ) . solution : it is clear .", "explanation")
        'it is clear .'
    """
    if method == "explanation":
        parts = _SOLUTION.split(text, maxsplit=1)
        return parts[1] if len(parts) == 2 else ""
    if method == "reasoning":
        cues = list(_ANSWER.finditer(text))
        return text[: cues[-1].start()] if cues else text
    return text if method == "first_stage" else None


def written_rows(
    cfg: Config, split: Split[Question], written: Mapping[str, str], condition: str
) -> list[scores.ScoreRow]:
    """Rows of the rationales that stage 1 wrote for training questions, by name; in training or out of fold."""
    parse_facts = parse if cfg.data.is_phantom else None
    return [
        scores.score_text(sample, condition, text=None, rationale=written[sample.id], parse_facts=parse_facts)
        for sample in split.samples
        if sample.id in written
    ]


def score_out_of_fold(cfg: Config, split: Split[Question], written: Mapping[str, str], folder: Path) -> None:
    """Score the rationales that stage 1 wrote out of fold."""
    examples.write_examples(folder, [], split, is_synthetic=cfg.data.is_phantom)
    folders.write_scores(folder, written_rows(cfg, split, written, OUT_OF_FOLD), scores.METRICS)


def guess_rows(train: Split[Question], scored: Split[Question], method: str) -> list[scores.ScoreRow]:
    """Rows of the score table for a baseline."""
    guesses = BY_METHOD[method](train.samples, scored.samples)
    return [scores.score_guess(sample, guess) for sample, guess in zip(scored.samples, guesses, strict=True)]


def guess_accuracy(train: Split[Question], scored: Split[Question], method: str) -> float:
    """Mean of `correct` of a baseline, in [0, 1]."""
    correct = [row["correct"] for row in guess_rows(train, scored, method)]
    return sum(value for value in correct if isinstance(value, float)) / len(correct)


def beside_score(cfg: Config, train: Split[Question], scored: Split[Question]) -> dict[str, object]:
    """What a score must be read beside: the baselines on the same items and what the splits share.

    Baselines count training answers; where a model is scored on data without a training part there are none.
    """
    methods = ("majority", "question_only") if train.samples else ()
    accuracies = {method: guess_accuracy(train, scored, method) for method in methods}
    return baselines.beside_score(cfg, train, scored, accuracies)


def run_baseline(cfg: Config, folder: Path) -> None:
    """Score a baseline arm and leave the files of a finished run in `folder`."""
    train, scored = load_splits(cfg, with_images=False)
    rows = guess_rows(train, scored, cfg.objective.method)
    baselines.run(cfg, folder, rows, metrics=scores.METRICS, n_counted=len(train.samples))


def _example(sample: Sample[Question], text: str | None, rationale: str, *, is_right: bool) -> examples.Shown:
    answer = "" if text is None else stated_answer(text, sample.record)
    return examples.Shown(sample, answer, rationale, is_right=is_right)
