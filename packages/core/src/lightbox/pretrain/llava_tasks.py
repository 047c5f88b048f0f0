"""What the tiny `llava` is pretrained on: the report of each image, and questions whose text alone tells nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.records import Case, Question

WORLDS = (Knobs(), Knobs(), Knobs(vocabulary="triples"))
"""Two thirds named classes, one third any known triple; no text prior, no held-out triple, no label noise."""
QUESTIONS_PER_CASE = 8
CAPTION, NAMING = "caption", "naming"
CAPTION_PROMPTS = ("describe the image .", "what does the image show ?", "write a report .")


@dataclass(frozen=True, slots=True)
class Turn:
    """One prompt about an image and its answer.

    `kind` is "caption", a question kind of the phantom, or "naming" for its open question what is seen in a place.
    """

    kind: str
    prompt: str
    answer: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatSet:
    """Images and what is said about each.

    `cases` are labelled and hold the pixels, uint8 (h, w); `turns` has one list a case, its caption first.
    """

    cases: list[Case]
    turns: list[list[Turn]]

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """Images of some cases, uint8 (b, h, w)."""
        return np.stack([np.asarray(self.cases[i].images[0]) for i in indices])


def chat_set(split: str, n_cases: int, *, seed: int = 0) -> ChatSet:
    """Draw images with captions and balanced questions from a phantom split, the worlds one after the other.

    Args:
        split: a phantom split.
        n_cases: images in all; a multiple of the number of worlds, else a few less are drawn.
        seed: run seed; each world has its own case seeds.
    """
    share = n_cases // len(WORLDS)
    cases: list[Case] = []
    for k, knobs in enumerate(WORLDS):
        seeds = seed_range(split, seed + k, share)
        cases += draw_cases(seeds, knobs, questions_per_case=QUESTIONS_PER_CASE, split=split)
    kept = balanced([question for case in cases for question in case.questions])
    turns = [
        [caption_turn(case, k), *(question_turn(q) for q in case.questions if q.id in kept)]
        for k, case in enumerate(cases)
    ]
    return ChatSet(cases, turns)


def caption_turn(case: Case, number: int) -> Turn:
    """The report, asked for in one of a few ways."""
    return Turn(CAPTION, CAPTION_PROMPTS[number % len(CAPTION_PROMPTS)], case.report.text)


def question_turn(question: Question) -> Turn:
    """A question and its short answer; choices are not listed, the question names them or is of yes or no."""
    is_naming = question.kind == "presence" and not question.is_closed
    return Turn(NAMING if is_naming else question.kind, question.text, question.answer, question.options)


def balanced(questions: Sequence[Question]) -> set[str]:
    """Ids of the questions to keep: all open ones, and of each closed text equally many of every answer.

    The phantom balances its default world on average; here the counts are equal, in any world.
    """
    counts = Counter((q.text, q.answer) for q in questions)
    used: Counter[tuple[str, str]] = Counter()
    kept = set()
    for q in questions:
        used[q.text, q.answer] += 1
        if not q.is_closed or used[q.text, q.answer] <= min(counts[q.text, option] for option in q.options):
            kept.add(q.id)
    return kept


def majority_answers(turns: Sequence[Turn]) -> dict[str, str]:
    """The commonest answer of each prompt: the best that the text alone can do."""
    counts = Counter((turn.prompt, turn.answer) for turn in turns)
    best: dict[str, str] = {}
    for (prompt, answer), _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        best.setdefault(prompt, answer)
    return best
