"""What the text model is pretrained on: spans of reports, and questions about facts with the report as context."""

from dataclasses import dataclass

import numpy as np

from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.pretrain.tokenizer import SENTINELS
from lightbox.records import Case, Question

QA_SHARE = 0.75
SPAN_RATE, SPAN_WORDS = 0.2, 3


@dataclass(frozen=True)
class TextPair:
    """One source and target text of the seq2seq model."""

    source: str
    target: str


def text_pairs(split: str, n_cases: int, *, seed: int = 0) -> list[TextPair]:
    """Draw pretraining pairs from a phantom split: question answering with the report as context, and span corruption.

    Rationales are never a source or a target. The question comes in the form "Question: .. Options: .. Context: ..
    Answer:".
    """
    rng = np.random.default_rng([seed, n_cases])
    pairs = []
    for case in draw_cases(seed_range(split, seed, n_cases), Knobs(), questions_per_case=3, with_pixels=False):
        for question in case.questions:
            qa = rng.random() < QA_SHARE
            pairs.append(question_pair(case, question) if qa else span_pair(case.report.text, rng))
    return pairs


def question_pair(case: Case, question: Question) -> TextPair:
    """A question with its report as context."""
    options = "".join(f" ({chr(65 + k)}) {option}" for k, option in enumerate(question.options))
    source = f"Question: {question.text}{' Options:' + options if options else ''} Context: {case.report.text} Answer:"
    answer = f"({chr(65 + question.answer_index)})" if question.is_closed else question.answer
    return TextPair(source, f"The answer is {answer}.")


def span_pair(text: str, rng: np.random.Generator) -> TextPair:
    """T5 span corruption: some runs of words become sentinels, the target lists them."""
    words = text.split()
    source: list[str] = []
    target: list[str] = []
    k = used = 0
    while k < len(words):
        if used < len(SENTINELS) and rng.random() < SPAN_RATE / SPAN_WORDS * 1.5:
            n = int(rng.integers(1, 2 * SPAN_WORDS))
            source.append(SENTINELS[used])
            target += [SENTINELS[used], *words[k : k + n]]
            k, used = k + n, used + 1
        else:
            source.append(words[k])
            k += 1
    if not used:
        return span_pair(text, rng)
    return TextPair(" ".join(source), " ".join(target))
