"""What a set of questions asks for: kinds of answers, and question texts that stand more than once. No torch."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from lightbox.records import Question

YES_NO, OTHER_OPTION, NUMBER, FEW_WORDS, LONGER = ANSWER_TYPES = (
    "yes or no",
    "another option",
    "number",
    "one to three words",
    "longer",
)
MOST_FEW_WORDS = 3
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?")
_NUMBER_WORDS = frozenset("zero one two three four five six seven eight nine ten".split())


@dataclass(frozen=True, slots=True)
class RepeatedText:
    """A question text, how many items ask it, and how often each answer is the right one, the commonest first."""

    text: str
    count: int
    answers: tuple[tuple[str, int], ...]

    @property
    def commonest_share(self) -> float:
        """How often the commonest answer is right, in [0, 1]."""
        return self.answers[0][1] / self.count


@dataclass(frozen=True, slots=True)
class Repetition:
    """How far the questions of a set repeat.

    `n_repeated` items have a text that another item has too; `n_commonest` of them have the commonest answer of their
    text, which is what the best guess from the text alone gets right on these very items. `texts` are in order of
    frequency.
    """

    n_items: int
    n_texts: int
    n_repeated: int
    n_commonest: int
    texts: tuple[RepeatedText, ...]


def answer_type(question: Question) -> str:
    """Which of `ANSWER_TYPES` a reference answer is; case, outer spaces and a last full stop do not matter.

    * yes or no: the answer is "yes" or "no", with options or without;
    * another option: any other answer of a closed question;
    * number: an open answer that is one number, in digits or in words from zero to ten, without a unit;
    * one to three words: any other open answer of at most three words, divided at spaces;
    * longer: the rest.

    Example:
        >>> answer_type(Question("a", "how many ?", "Two")), answer_type(Question("b", "how long ?", "2 cm"))
        ('number', 'one to three words')
    """
    answer = question.answer.strip().rstrip(".").lower()
    if answer in ("yes", "no"):
        return YES_NO
    if question.is_closed:
        return OTHER_OPTION
    if answer in _NUMBER_WORDS or _NUMBER.fullmatch(answer):
        return NUMBER
    return FEW_WORDS if len(answer.split()) <= MOST_FEW_WORDS else LONGER


def text_key(text: str) -> str:
    """A question text without case and surplus spaces: "Is it?" and "is  it?" are one text."""
    return " ".join(text.lower().split())


def repetition(questions: Sequence[Question]) -> Repetition:
    """Count question texts and the answers that each has; see `text_key`. Ties go to the text or answer met first."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, str] = {}
    for question in questions:
        key = text_key(question.text)
        first.setdefault(key, question.text)
        answers[key][" ".join(question.answer.lower().split())] += 1
    texts = [RepeatedText(first[key], count.total(), tuple(count.most_common())) for key, count in answers.items()]
    return Repetition(
        n_items=len(questions),
        n_texts=len(texts),
        n_repeated=sum(text.count for text in texts if text.count > 1),
        n_commonest=sum(text.answers[0][1] for text in texts if text.count > 1),
        texts=tuple(sorted(texts, key=lambda text: -text.count)),
    )
