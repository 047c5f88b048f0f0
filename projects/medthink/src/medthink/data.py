"""Question -> prompt and target. The paper's idea is here: what the target says, and in which order. No torch.

One table serves all strategies. A field is a piece of prompt or target; where a row is too long, fields are shortened
in a fixed order and never the answer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightbox.errors import RequestError
from lightbox.eval.answers import letter_of
from lightbox.paper import samples
from lightbox.paper.samples import Sample, Split
from lightbox.records import Case, Question
from medthink.config import Config

if TYPE_CHECKING:  # transformers takes seconds to import, and baselines need no tokenizer
    from transformers import PreTrainedTokenizerBase

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
        n_options = 2 if cfg.data.form == "closed" else 0
        return [one_spaced(question) for question in case.questions if len(question.options) == n_options]

    train, scored = samples.load_splits(
        cfg,
        pick,
        what=f"{cfg.data.form} question",
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


def fields_of(question: Question, names: Sequence[str]) -> list[tuple[str, str]]:
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


def texts_of(question: Question, method: str) -> tuple[str, str]:
    """Prompt and target of a question, at full length."""
    template = TEMPLATES[method]
    source, target = (" ".join(text for _, text in fields_of(question, names)) for names in template)
    return source, target


def make_texts(
    cfg: Config,
) -> Callable[[Sequence[Sample[Question]], "PreTrainedTokenizerBase"], list[tuple[str, str]]]:
    """The function that writes prompts and targets under the strategy of `cfg`, within its lengths."""

    def texts(questions: Sequence[Sample[Question]], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
        return fitted_texts(
            [sample.record for sample in questions],
            cfg.objective.method,
            tokenizer,
            source_tokens=cfg.data.source_tokens,
            target_tokens=cfg.target_tokens,
        )

    return texts


def fitted_texts(
    questions: Sequence[Question],
    method: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    source_tokens: int,
    target_tokens: int,
) -> list[tuple[str, str]]:
    """Prompts and targets as text, shortened where they are too long.

    Args:
        questions: with the rationale that the strategy is to read or write.
        method: key of `TEMPLATES`.
        tokenizer: counts; a field that is too long becomes the text of its first ids.
        source_tokens, target_tokens: longest texts in tokens, one for the end included.
    """
    template = TEMPLATES[method]
    limits = (source_tokens - 1, target_tokens - 1)
    rows = [tuple(fields_of(question, names) for names in template) for question in questions]
    every_text = sorted({text for row in rows for fields in row for _, text in fields})
    # each distinct text is tokenised once, all in one call: questions and options repeat
    ids_of = dict(zip(every_text, tokenizer(every_text, add_special_tokens=False)["input_ids"], strict=True))

    def shortened(fields: list[tuple[str, str]], limit: int) -> str:
        parts = [(name, ids_of[text]) for name, text in fields]
        words = [
            text if len(ids) == len(ids_of[text]) else str(tokenizer.decode(ids))
            for (_, text), (_, ids) in zip(fields, fitted(parts, limit), strict=True)
        ]
        return " ".join(word for word in words if word)

    pairs = [[shortened(fields, limit) for fields, limit in zip(row, limits, strict=True)] for row in rows]
    return [(source, target) for source, target in pairs]


def fitted(parts: list[tuple[str, list[int]]], limit: int) -> list[tuple[str, list[int]]]:
    """Shorten fields from their ends, rationale first, then question, until at most `limit` ids are left."""
    for name_to_cut in CUT_FIRST:
        excess = sum(len(ids) for _, ids in parts) - limit
        if excess > 0:
            parts = [(name, ids[: max(0, len(ids) - excess)] if name == name_to_cut else ids) for name, ids in parts]
    return parts
