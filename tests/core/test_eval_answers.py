"""Letters, exact match and recall, by tables worked out by hand."""

import pytest

from lightbox.eval.answers import parse_letter, parse_stated, score_letter, score_stated, words_of


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (A).", "A"),
        ("the answer is ( b ) .", "B"),
        ("The answer is(B).", "B"),
        ("It is clear. Answer: The answer is (A).", "A"),
        ("The answer is (A). Solution: the answer is (A).", None),  # two matches, even of one letter
        ("The answer is (A). The answer is (B).", None),
        ("The answer is A.", None),
        ("(A)", None),
        ("The answer is (AB).", None),
        ("The answer was (A).", None),
        ("", None),
    ],
)
def test_letter_needs_exactly_one_match(text, letter):
    assert parse_letter(text) == letter


def test_unparsable_closed_answer_is_wrong_and_not_left_out():
    score = score_letter("yes", 0)
    assert (score.is_correct, score.is_parsed, score.token_recall) == (False, False, None)
    assert score_letter("The answer is (B).", 1).is_correct
    assert not score_letter("The answer is (B).", 0).is_correct


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("The answer is left lung. Solution: it is.", "left lung"),
        ("the answer is left upper zone . solution : a disc", "left upper zone"),
        ("The answer is 0.5 cm.", "0.5 cm"),
        ("The answer is CT Solution: x", "CT"),
        ("x. Answer: The answer is two", "two"),
        ("two", None),
        ("The answer is .", None),
        ("The answer is a. The answer is b.", None),
    ],
)
def test_open_answer_is_what_follows_the_one_statement(text, stated):
    assert parse_stated(text) == stated


@pytest.mark.parametrize(
    ("text", "gold", "is_correct", "recall"),
    [
        ("The answer is left lung.", "Left lung", True, 1.0),
        ("The answer is lung left.", "left lung", False, 1.0),
        ("The answer is left.", "left lung", False, 0.5),
        ("The answer is abnormal.", "no", False, 0.0),  # a substring is not a word
        ("The answer is no.", "abnormal", False, 0.0),
        ("The answer is the the.", "the the cat", False, 2 / 3),
        ("The answer is the.", "the the cat", False, 1 / 3),
        ("left lung", "left lung", False, 0.0),  # not stated as an answer
    ],
)
def test_open_answer_scores(text, gold, is_correct, recall):
    score = score_stated(text, gold)
    assert score.is_correct is is_correct
    assert score.token_recall == pytest.approx(recall)


def test_words_keep_decimal_points_and_lose_punctuation():
    assert words_of("T1-weighted, 0.5 (left)") == ["t1", "weighted", "0.5", "left"]
