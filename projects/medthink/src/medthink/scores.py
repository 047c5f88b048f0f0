"""Per-item scores: what one generated text is worth, and the table of all, written before any mean. No torch."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from lightbox.eval.answers import score_answer
from lightbox.eval.facts import score_facts
from lightbox.eval.text import ORDERS, rouge_l, sentence_bleu
from lightbox.paper.conditions import IMAGE
from lightbox.paper.samples import Sample
from lightbox.records import Question

METRICS = (
    "correct",  # letter accuracy (closed) or exact match (open), 0 or 1; unparsable is 0
    "parsed",  # 1 where exactly one answer was found
    "token_recall",  # open answers: share of gold words stated
    *(f"bleu{n}" for n in ORDERS),  # rationale, 0 to 100
    "rouge_l",  # rationale, 0 to 1
    "fact_f1",  # rationale on the phantom, 0 to 1
    "rationale_right",  # 1 where the rationale states exactly the right facts
    "correct_when_right",  # `correct` where rationale_right is 1, else null
    "correct_when_wrong",  # `correct` where rationale_right is 0, else null
    "loss_at_right_facts",  # answer-only's `correct` minus this one's where rationale_right is 1, else 0
    "loss_at_wrong_facts",  # the same where rationale_right is 0; the two add up to the whole difference
)
ParseFacts = Callable[[str], frozenset[str]]
ScoreRow = dict[str, str | float | None]


def score_text(
    sample: Sample[Question], condition: str, *, text: str | None, rationale: str | None, parse_facts: ParseFacts | None
) -> ScoreRow:
    """One row of the table.

    Args:
        sample: with the reference answer and rationale.
        condition: name of the condition.
        text: the generated text that should hold the answer; None where the strategy gives none (stage 1).
        rationale: the generated rationale; None where there is none to judge.
        parse_facts: facts stated by a text, for the phantom; None elsewhere.
    """
    question = sample.record
    row: ScoreRow = {"item": sample.id, "condition": condition, "kind": question.kind} | dict.fromkeys(METRICS)
    if text is not None:
        score = score_answer(text, question)
        row |= {
            "correct": float(score.is_correct),
            "parsed": float(score.is_parsed),
            "token_recall": score.token_recall,
        }
    if rationale is None or not question.rationale:
        return row
    row |= sentence_bleu(rationale, question.rationale) | {"rouge_l": rouge_l(rationale, question.rationale)}
    if parse_facts is not None:
        facts = score_facts(parse_facts(rationale), frozenset(question.facts))
        row |= {"fact_f1": facts.f1, "rationale_right": float(facts.is_right)}
        row["correct_when_right" if facts.is_right else "correct_when_wrong"] = row["correct"]
    return row


def score_guess(sample: Sample[Question], guess: str) -> ScoreRow:
    """The row of a baseline's guess; it never looks, so there is one condition."""
    row: ScoreRow = {"item": sample.id, "condition": IMAGE, "kind": sample.record.kind} | dict.fromkeys(METRICS)
    return row | {"correct": float(guess == sample.record.answer.lower()), "parsed": 1.0}


def add_losses(rows: Sequence[ScoreRow], answer_only: pa.Table) -> None:
    """Fill in where a strategy loses against answer-only: at items whose rationale states the right or the wrong facts.

    Args:
        rows: of one arm, changed in place; rows without `rationale_right` stay as they are.
        answer_only: the scores of arm "none" on the same items.
    """
    names = zip(answer_only["item"].to_pylist(), answer_only["condition"].to_pylist(), strict=True)
    rival = dict(zip(names, answer_only["correct"].to_pylist(), strict=True))
    for row in rows:
        if row["rationale_right"] is not None and (row["item"], row["condition"]) in rival:
            loss = rival[row["item"], row["condition"]] - row["correct"]
            row["loss_at_right_facts"] = loss * row["rationale_right"]
            row["loss_at_wrong_facts"] = loss * (1.0 - row["rationale_right"])
