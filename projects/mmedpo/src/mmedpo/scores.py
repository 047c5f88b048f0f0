"""Per-item scores: what a text is worth as an answer or a report, and how far a scorer of a pair is off. No torch."""

from collections.abc import Sequence

import numpy as np

from lightbox.eval.answers import words_of
from lightbox.eval.scoring_rules import llava_med_exact, llava_med_recall, llava_med_substring
from lightbox.paper.preference_pairs import Pair
from lightbox.paper.report_scores import FACT_METRICS, TEXT_METRICS, score_report_facts, score_report_text
from lightbox.paper.samples import Sample
from mmedpo.data import REPORT, Asked

PAIRS = "pairs"
"""Condition of the rows that are about training pairs."""
METRICS = (
    "correct",  # 1 where the text has the words of the true answer, in order, and no others; null for reports
    "closed",  # the same of closed questions
    "open",  # the same of open ones
    "substring",  # the official rule: the true answer is in the text somewhere, inside a word too; closed only
    "recall",  # share of the words of the true answer that the text has; open only
    "official_recall",  # the official rule for open ones: repetitions in the text count
    "official_exact",  # what the official evaluation prints as exact match: a precision of words; open only
    "with_prior",  # `closed` where the truth is what the biased questions suggest
    "against_prior",  # and where it is not
    *FACT_METRICS,  # of reports: findings, and what is false
    *TEXT_METRICS,  # of reports: how near the words are
    "sensitivity_in",  # log p(y|x) - log p(y|x*), x* with its findings noised, in nats
    "sensitivity_out",  # the same with as much noise elsewhere
    "sensitivity_noised",  # of real images: the same with all of the image noised
    "sensitivity_other",  # and with another case's image
    "words",  # how long the text is
    "score_error",  # of a training pair: how far the scorer is from the known relevance, in [0, 1]
)
ScoreRow = dict[str, str | float | None]


def score(sample: Sample[Asked], condition: str, text: str, *, prior: str = "") -> ScoreRow:
    """One row of the table.

    Args:
        sample: with the true answer.
        condition: under which it was asked.
        text: what was generated.
        prior: the answer that the biased questions suggest, for a closed question; "" where they suggest none.
    """
    asked = sample.record
    row = _blank(sample.id, condition, asked.kind)
    row["words"] = float(len(text.split()))
    if asked.kind == REPORT:
        return row | score_report_facts(text, asked.answer) | score_report_text(text, asked.answer)
    stated, true = words_of(text), words_of(asked.answer)
    row["correct"] = float(stated == true)
    if not asked.is_closed:
        official = {"official_recall": llava_med_recall(text, asked), "official_exact": llava_med_exact(text, asked)}
        return row | {"open": row["correct"], "recall": sum(word in stated for word in true) / len(true)} | official
    row |= {"closed": row["correct"], "substring": llava_med_substring(text, asked)}
    if prior:
        row["with_prior" if prior == asked.answer else "against_prior"] = row["correct"]
    return row


def pair_rows(pairs: Sequence[Sample[Pair]], scores: np.ndarray) -> list[ScoreRow]:
    """A row for each training pair: how far its score is from the known relevance."""
    return [
        _blank(pair.id, PAIRS, pair.record.kind) | {"score_error": abs(float(own) - pair.record.relevance)}
        for pair, own in zip(pairs, scores, strict=True)
    ]


def _blank(item: str, condition: str, kind: str) -> ScoreRow:
    return {"item": item, "condition": condition, "kind": kind, **dict.fromkeys(METRICS)}
