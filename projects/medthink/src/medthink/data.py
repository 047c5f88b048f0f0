"""Question -> prompt and target. The paper's idea is here: what the target says, and in which order. No torch.

One table serves all strategies. A field is a piece of prompt or target; where a row is too long, fields are shortened
in a fixed order and never the answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightbox.errors import RequestError
from lightbox.eval.answers import letter_of
from lightbox.paper import samples
from lightbox.paper.prompts import Fields, fitted_texts, joined
from lightbox.paper.samples import Sample, Split
from lightbox.records import Case, Question
from medthink.config import Config

if TYPE_CHECKING:  # transformers takes seconds to import, and baselines need no tokenizer
    from transformers import PreTrainedTokenizerBase

    from lightbox.paper.learner import Texts

NEEDS_RATIONALE = ("explanation", "reasoning", "first_stage", "reader")


class Template(NamedTuple):
    """Names of the fields of a prompt and of a target, in order."""

    source: tuple[str, ...]
    target: tuple[str, ...]


FIELDS = {
    "question": "Question: {question}",
    "options": "Options: {options}",
    "given_rationale": "Solution: {rationale}",
    "ask_answer": "Answer:",
    "ask_rationale": "Solution:",
    "answer": "The answer is {answer}.",
    "then_answer": "Answer: The answer is {answer}.",
    "rationale": "{rationale}",
    "then_rationale": "Solution: {rationale}",
}
_ASK_ANSWER = ("question", "options", "ask_answer")
_ASK_RATIONALE = ("question", "options", "ask_rationale")
_GIVEN_RATIONALE = ("question", "options", "given_rationale", "ask_answer")
TEMPLATES = {
    "none": Template(_ASK_ANSWER, ("answer",)),
    "explanation": Template(_ASK_ANSWER, ("answer", "then_rationale")),
    "reasoning": Template(_ASK_RATIONALE, ("rationale", "then_answer")),
    "first_stage": Template(_ASK_RATIONALE, ("rationale",)),
    "second_stage": Template(_GIVEN_RATIONALE, ("answer",)),
    "reader": Template(_GIVEN_RATIONALE, ("answer",)),
}
CUT_FIRST = ("given_rationale", "rationale", "then_rationale", "question")
"""What is shortened, in this order, where a row is too long: never the options, the cue or the answer."""


def load_splits(cfg: Config, *, with_images: bool = True) -> tuple[Split[Question], Split[Question]]:
    """The training questions and those to be scored, reference rationales in both.

    Args:
        cfg: `data.*`, `run.seed` and `objective.method` decide.
        with_images: see `samples.load_splits`.

    Raises:
        RequestError: as there, or training rationales that the strategy needs and the data lack.
    """

    def pick(case: Case) -> list[Question]:
        """Closed means two options, as in the paper; open means none."""
        n_options = {"closed": (2,), "open": (0,), "any": (0, 2)}[cfg.data.form]
        return [one_spaced(question) for question in case.questions if len(question.options) in n_options]

    train, scored = samples.load_splits(
        cfg,
        pick,
        what="question" if cfg.data.form == "any" else f"{cfg.data.form} question",
        with_images=with_images,
        **({"closed": cfg.data.form == "closed"} if cfg.data.is_phantom else {}),
    )
    method = cfg.objective.method
    is_needed = method in NEEDS_RATIONALE or (method, cfg.objective.stage2_rationales) == ("second_stage", "gold")
    missing = sum(not sample.record.rationale for sample in train.samples)
    if is_needed and missing and cfg.objective.is_trained:
        raise RequestError(
            f"objective.method is {method} and data.source is {cfg.data.source}",
            f"{missing} of its {len(train.samples)} training questions have no rationale to learn from",
            "Use a set with rationales (phantom, r_rad, r_slake, r_path), or objective.method=none",
        )
    return train, scored


def one_spaced(question: Question) -> Question:
    """A question with single spaces between words, as the templates are compared word by word."""
    text, rationale = (" ".join(part.split()) for part in (question.text, question.rationale or ""))
    if (text, rationale) == (question.text, question.rationale):
        return question
    return dataclasses.replace(question, text=text, rationale=rationale)


def fields_of(question: Question, names: Sequence[str]) -> Fields:
    """The named fields of a question as (name, text); an open one has no options, an empty rationale no field."""
    values = {
        "question": question.text,
        "options": " ".join(f"({letter_of(place)}) {option}" for place, option in enumerate(question.options)),
        "answer": f"({letter_of(question.answer_index)})" if question.is_closed else question.answer,
        "rationale": question.rationale,
    }
    dropped = [] if question.is_closed else ["options"]
    dropped += [] if question.rationale else ["rationale", "then_rationale"]
    return [(name, FIELDS[name].format(**values).strip()) for name in names if name not in dropped]


def written_fields(questions: Sequence[Question], method: str) -> list[tuple[Fields, Fields]]:
    """Fields of the prompt and of the target of each question under a strategy."""
    template = TEMPLATES[method]
    return [(fields_of(question, template.source), fields_of(question, template.target)) for question in questions]


def weighed_answer(cfg: Config) -> str:
    """A text with as many tokens as each answer, where `objective.answer_loss` weighs the answer by itself; else ""."""
    return FIELDS["answer"].format(answer="(A)") if cfg.objective.answer_loss == "alike" else ""


def texts_of(question: Question, method: str) -> tuple[str, str]:
    """Prompt and target of a question, at full length."""
    source, target = written_fields([question], method)[0]
    return joined(source), joined(target)


def make_texts(cfg: Config) -> "Texts":
    """The function that writes prompts and targets under the strategy of `cfg`, within its lengths."""

    def texts(questions: Sequence[Sample[Question]], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
        return fitted_texts(
            written_fields([sample.record for sample in questions], cfg.objective.method),
            tokenizer,
            cut_first=CUT_FIRST,
            source_tokens=cfg.data.source_tokens,
            target_tokens=cfg.target_tokens,
        )

    return texts
