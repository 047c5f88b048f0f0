"""METEOR against values worked out by hand and against the example of NLTK's documentation, without its synonyms."""

import pytest

from lightbox.eval.meteor import meteor


def by_hand(matches, stated, true, chunks):
    precision, recall = matches / stated, matches / true
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("the lungs are clear .", "The lungs are clear", by_hand(4, 4, 4, 1)),
        ("lungs clear", "the lungs are clear", by_hand(2, 2, 4, 2)),  # two runs
        ("no nodules seen", "no nodule is seen", by_hand(3, 3, 4, 2)),  # by the stem
        ("a big heart", "a large heart", by_hand(2, 3, 3, 2)),  # a synonym is no match
        ("left", "right", 0.0),
        ("", "the lungs are clear", 0.0),
        (" . ", "the lungs are clear", 0.0),
    ],
)
def test_meteor_is_the_formula(text, reference, expected):
    assert meteor(text, reference) == pytest.approx(expected)


def test_order_costs_less_than_missing_words():
    reference = "an effusion is seen in the right angle"
    assert meteor("in the right angle an effusion is seen", reference) > meteor("an effusion is seen", reference)
