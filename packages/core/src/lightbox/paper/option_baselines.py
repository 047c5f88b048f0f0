"""A baseline for questions whose options differ from item to item: the option that was most often right. No torch.

`baselines.question_only` counts answers of the same text, which such questions hardly ever repeat, and may give an
answer that is no option at all.
"""

from collections import Counter
from collections.abc import Sequence

from lightbox.paper.samples import Sample
from lightbox.records import Question


def options(train: Sequence[Sample[Question]], asked: Sequence[Sample[Question]]) -> list[str]:
    """Of each question's options the one that is the most frequent training answer, lower case; ties by their order.

    Questions of one kind are counted together where that kind was met, and all of them elsewhere.
    """
    by_kind: dict[str, Counter[str]] = {}
    for sample in train:
        by_kind.setdefault(sample.record.kind, Counter())[sample.record.answer.lower()] += 1
    overall = sum(by_kind.values(), Counter())
    guesses = []
    for sample in asked:
        counts = by_kind.get(sample.record.kind) or overall
        guesses.append(max((option.lower() for option in sample.record.options), key=lambda own: counts[own]))
    return guesses
