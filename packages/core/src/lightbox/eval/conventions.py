"""The same predictions under rival scoring conventions: one row each, with what it counts and where it misleads.

`table` takes predictions from a file (`lightbox.eval.predictions`) or from a run that has just made them. No torch.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightbox.errors import RequestError
from lightbox.eval import scoring_rules as rules
from lightbox.records import Question


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model wrote, unchanged, for a question whose answer is known."""

    question: Question
    text: str


@dataclass(frozen=True)
class Convention:
    """A rule, and the questions that it can score: in words and as a test."""

    rule: Callable[[str, Question], float | None]
    scope: str
    applies: Callable[[Question], bool]

    def line(self, label: str) -> str:
        """What the rule's docstring says after Source, Counted or Misleads; "" where Python drops docstrings."""
        found = re.search(rf"^ *{label}: (.+)$", self.rule.__doc__ or "", re.MULTILINE)
        return found.group(1) if found else ""


@dataclass(frozen=True, slots=True)
class Row:
    """One convention's mean in [0, 1] over `n_counted` of `n_items` items; None where `cannot_score` says why.

    `n_differs` items get another score than by `ours`, or are not counted although the rule is for such questions.
    """

    convention: str
    score: float | None
    n_counted: int
    n_items: int
    n_differs: int
    counted: str
    misleads: str
    source: str
    cannot_score: str = ""


_EVERY = ("any question", lambda question: True)
_CLOSED = ("closed questions", lambda question: question.is_closed)
_TWO = ("closed questions with two options", lambda question: len(question.options) == 2)
_YES_NO = ("closed questions answered yes or no", lambda q: q.is_closed and q.answer.lower() in rules.YES_NO)
_OPEN = ("open questions", lambda question: not question.is_closed)

CONVENTIONS = {
    rule.__name__.replace("_", "-"): Convention(rule, *scope)
    for rule, scope in (
        (rules.ours, _EVERY),
        (rules.ours_closed, _CLOSED),
        (rules.ours_recall, _OPEN),
        (rules.parsed_only, _EVERY),
        (rules.else_b, _TWO),
        (rules.first_character, _CLOSED),
        (rules.llava_med_first, _CLOSED),
        (rules.llava_med_closed, _CLOSED),
        (rules.llava_med_substring, _CLOSED),
        (rules.llava_med_recall, _OPEN),
        (rules.llava_med_exact, _OPEN),
        (rules.medevalkit_closed, _CLOSED),
        (rules.medevalkit_choice, _CLOSED),
        (rules.medevalkit_exact, _OPEN),
        (rules.medevalkit_recall, _OPEN),
        (rules.medevalkit_bleu1, _OPEN),
        (rules.vlmevalkit_yes_no, _YES_NO),
        (rules.lmms_eval_slake, _EVERY),
    )
}
"""Name -> convention, in the order of the table."""


def table(predictions: Sequence[Prediction], names: Sequence[str] = ()) -> list[Row]:
    """Score predictions, each once, under the conventions named, in that order; under all where none is named.

    Raises:
        RequestError: for an unknown name, listing the known ones.
    """
    check_names(names)
    return [_row(predictions, name) for name in dict.fromkeys(names or CONVENTIONS)]


def check_names(names: Sequence[str]) -> None:
    """Raise `RequestError` for a name that no convention has."""
    for name in names:
        if name not in CONVENTIONS:
            near = difflib.get_close_matches(name, CONVENTIONS, n=1)
            do = f"Did you mean {near[0]}?" if near else "Choose one of them"
            raise RequestError(f"The convention '{name}'", f"The conventions are {', '.join(CONVENTIONS)}", do)


def _row(predictions: Sequence[Prediction], name: str) -> Row:
    convention = CONVENTIONS[name]
    fitting = [prediction for prediction in predictions if convention.applies(prediction.question)]
    scores = [convention.rule(prediction.text, prediction.question) for prediction in fitting]
    our_scores = [rules.ours(prediction.text, prediction.question) for prediction in fitting]
    counted = [score for score in scores if score is not None]
    cannot_score = ""
    if not fitting:
        cannot_score = f"it is for {convention.scope}, and none of the {len(predictions)} items is one"
    elif not counted:
        cannot_score = f"it leaves out each of the {len(fitting)} items that it is for"
    return Row(
        convention=name,
        score=sum(counted) / len(counted) if counted else None,
        n_counted=len(counted),
        n_items=len(predictions),
        n_differs=sum(score != our for score, our in zip(scores, our_scores, strict=True)),
        counted=convention.line("Counted"),
        misleads=convention.line("Misleads"),
        source=convention.line("Source"),
        cannot_score=cannot_score,
    )
