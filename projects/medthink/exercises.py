"""Three exercises on MedThink: recall, modify, break. Fill in the functions; `solutions.py` is beside this file.

Check your work from the checkout, in under a minute:

    uv run pytest tests/medthink/test_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None trains a model.
"""

from collections.abc import Sequence

from lightbox.paper.samples import Sample
from lightbox.records import Question


def write_target(question: Question, method: str) -> str:
    """Recall: what does the decoder have to write under each strategy?

    Write it by hand, without `medthink.data`. The letter of the right option stands in "The answer is (X)." and the
    rationale follows "Solution:" or goes before "Answer:".

    Args:
        question: closed, with two options, `answer_index` 0 or 1, and a rationale.
        method: "none", "explanation" or "reasoning".

    Returns:
        The target as one line of text, fields separated by single spaces.
    """
    raise NotImplementedError("exercise 1")


def with_shuffled_words(questions: Sequence[Sample[Question]], *, seed: int) -> list[Sample[Question]]:
    """Modify: a third control for claim T1, between filler and the truth.

    Give each item its own rationale with the words in random order. The words, and so the facts' vocabulary and the
    length, stay; the sentences are gone. If this control did as well as the true rationale, what would that say?

    Args:
        questions: of the training split; they must not be changed.
        seed: of the order; equal seeds give equal results, other seeds other orders.

    Returns:
        New ones, in the order of `questions`, that differ in the rationale only. An empty rationale stays empty.
    """
    raise NotImplementedError("exercise 2")


def leak_answer(question: Question) -> str:
    """Break: give the answer away to the reader of claim T4, past the mask that should hide it.

    `medthink.rationales.masked` hides the words of the options and words such as "yes", "no" and "absent". The gain
    that is left is printed as "without answer words". Write a rationale that says nothing about the image and from
    which the answer can still be read once it is masked. It must work for every closed question, whatever its options
    are called.

    Args:
        question: closed, with two options; only `answer_index` may be used.

    Returns:
        A rationale.
    """
    raise NotImplementedError("exercise 3")
