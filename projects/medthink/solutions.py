"""Solutions of `exercises.py`. Try first."""

from collections.abc import Sequence

import numpy as np

from lightbox.paper.samples import Sample
from lightbox.records import Question


def write_target(question: Question, method: str) -> str:
    """Explanation and answer-only share their beginning: the answer is written before any rationale token exists.

    That is why Explanation costs nothing at test time if only the answer is wanted, and why a wrong rationale cannot
    mislead its answer. Under Reasoning it can.
    """
    answer = f"The answer is ({'AB'[question.answer_index]})."
    return {
        "none": answer,
        "explanation": f"{answer} Solution: {question.rationale}",
        "reasoning": f"{question.rationale} Answer: {answer}",
    }[method]


def with_shuffled_words(questions: Sequence[Sample[Question]], *, seed: int) -> list[Sample[Question]]:
    """One generator for all questions, so that equal rationales get different orders.

    If this control did as well as the truth, the model would profit from the words that go with an image, as from a bag
    of labels, and not from a chain of reasons.
    """
    rng = np.random.default_rng(seed)
    changed = []
    for question in questions:
        words = question.record.rationale.split()
        changed.append(question.with_record(rationale=" ".join(rng.permutation(words).tolist()) if words else ""))
    return changed


def leak_answer(question: Question) -> str:
    """A code that the mask does not know: the place of the right option, in words.

    A mask of listed words hides what somebody thought of. So the gain behind it is an upper bound of what the reader
    gets from facts. A writer that was shown the answer may use any code, and nobody has listed them.
    """
    return f"the {('first', 'second')[question.answer_index]} of the two fits ."
