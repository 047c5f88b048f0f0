"""BLEU and ROUGE-L against values worked out by hand."""

import math

import pytest

from lightbox.eval.text import rouge_l, sentence_bleu


def test_bleu_of_equal_texts_is_100_for_every_order():
    scores = sentence_bleu("the lungs are clear .", "The lungs are clear .")
    assert scores == pytest.approx({f"bleu{n}": 100.0 for n in (1, 2, 3, 4)})


def test_bleu_is_cumulative():
    # a b c d against a b x d: unigrams 3/4, bigrams 1/3
    scores = sentence_bleu("a b c d", "a b x d")
    assert scores["bleu1"] == pytest.approx(75.0)
    assert scores["bleu2"] == pytest.approx(100 * math.sqrt(3 / 4 * 1 / 3))
    assert scores["bleu4"] < scores["bleu3"] < scores["bleu2"]


def test_bleu_punishes_short_texts_by_brevity():
    assert sentence_bleu("a b", "a b c d")["bleu1"] == pytest.approx(100 * math.exp(1 - 4 / 2))


def test_short_right_answer_is_not_punished_by_orders_it_cannot_have():
    assert sentence_bleu("yes", "yes")["bleu4"] == pytest.approx(100.0)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text_scores_zero(text):
    assert set(sentence_bleu(text, "a b").values()) == {0.0}
    assert rouge_l(text, "a b") == 0.0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # longest common subsequence "lungs clear" of 3 and 4 words: P 2/3, R 2/4
    assert rouge_l("lungs seem clear", "the lungs are clear") == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
