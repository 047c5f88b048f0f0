"""Fact-F1, including the degenerate cases."""

import pytest

from lightbox.eval.facts import score_facts


@pytest.mark.parametrize(
    ("stated", "true", "precision", "recall", "f1", "is_right"),
    [
        ({"a", "b"}, {"a", "b"}, 1, 1, 1, True),
        ({"a"}, {"a", "b"}, 1, 1 / 2, 2 / 3, False),
        ({"a", "b", "c"}, {"a"}, 1 / 3, 1, 1 / 2, False),
        ({"c"}, {"a"}, 0, 0, 0, False),
        (set(), {"a"}, 1, 0, 0, False),
        ({"a"}, set(), 0, 1, 0, False),
        (set(), set(), 1, 1, 1, True),
    ],
)
def test_fact_scores(stated, true, precision, recall, f1, is_right):
    score = score_facts(stated, true)
    assert (score.precision, score.recall, score.f1) == pytest.approx((precision, recall, f1))
    assert score.is_right is is_right
