"""False answers to questions of real sets: what such questions are answered about other images. No torch.

| grade | open question | closed question |
|---|---|---|
| near | as many words, given to the same question elsewhere; without such, to its kind | another option |
| far | any other answer of its kind | none |

An answer stands in a list as often as it is given, so that a drawn one is no rarer as a rival than as the truth. What
may be true in other words is left out: answers of which one has all words of the other, and `SYNONYMS`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from lightbox.eval.answers import words_of
from lightbox.records import Question

SYNONYMS = (
    frozenset({"axial", "transverse"}),
    frozenset({"frontal", "coronal"}),
    frozenset({"frontal", "ap"}),
    frozenset({"frontal", "pa"}),
)
"""Answers that may both be true of an image: names of a plane, and a view that two others are kinds of."""


@dataclass(frozen=True)
class AnswerPool:
    """Answers to open questions, counted: by kind of question, and by its words in lower case."""

    by_kind: dict[str, Counter[str]]
    by_text: dict[str, Counter[str]]

    def rivals(self, question: Question) -> dict[str, list[str]]:
        """False answers by grade, each list sorted; both are empty where nothing else was ever answered.

        Example:
            >>> asked = [Question(str(n), "which plane ?", a, kind="plane") for n, a in enumerate(("axial", "coronal"))]
            >>> pool_of(asked).rivals(asked[0])
            {'near': ['coronal'], 'far': []}
        """
        if question.is_closed:
            return {"near": [own for own in question.options if own != question.answer], "far": []}
        of_kind = _others(self.by_kind.get(question.kind), question.answer)
        of_text = _others(self.by_text.get(question.text.lower()), question.answer)
        near = _as_long(of_text, question.answer) or _as_long(of_kind, question.answer)
        far = Counter({own: count for own, count in of_kind.items() if own not in near})
        return {grade: [a for a in sorted(own) for _ in range(own[a])] for grade, own in (("near", near), ("far", far))}


def pool_of(questions: Iterable[Question]) -> AnswerPool:
    """Count the answers of some questions, those of a training split; closed ones are left out."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        if not question.is_closed:
            by_kind[question.kind][question.answer] += 1
            by_text[question.text.lower()][question.answer] += 1
    return AnswerPool(dict(by_kind), dict(by_text))


def may_agree(one: str, other: str) -> bool:
    """True where two answers may both be true of an image.

    Example:
        >>> may_agree("ct noncontrast", "Noncontrast"), may_agree("contrast", "noncontrast"), may_agree("pa", "frontal")
        (True, False, True)
    """
    words, others = _words(one), _words(other)
    return words <= others or others <= words or frozenset({one.lower(), other.lower()}) in SYNONYMS


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(words_of(text))


def _others(counts: Counter[str] | None, answer: str) -> Counter[str]:
    """Answers that are false where one is true, with their counts."""
    return Counter({own: count for own, count in (counts or {}).items() if not may_agree(own, answer)})


def _as_long(counts: Counter[str], answer: str) -> Counter[str]:
    length = len(words_of(answer))
    return Counter({own: count for own, count in counts.items() if len(words_of(own)) == length})
