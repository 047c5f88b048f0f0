"""What a text is worth: answers word by word, reports fact by fact, and the official rule with its error."""

import pytest

from lightbox.paper.report_scores import TEXT_METRICS
from lightbox.paper.samples import Sample
from lightbox.phantom.report_facts import is_true, report_facts
from mmedpo.data import REPORT, Asked
from mmedpo.scores import score

REFERENCE = (
    "the left hilum shows a nodule , a small dense disc . heart size is normal . an effusion is seen in the right "
    "costophrenic angle . no mass is seen ."
)


def row_of(answer, text, *, kind="presence", options=(), prior=""):
    asked = Asked("a", "?", answer, options=options, answer_index=options.index(answer) if options else None, kind=kind)
    return score(Sample("a", asked, "c", 0), "image", text, prior=prior)


@pytest.mark.parametrize(
    ("text", "correct", "substring"),
    [
        ("no", 1.0, 1.0),
        ("No .", 1.0, 1.0),
        ("abnormal", 0.0, 1.0),
        ("yes", 0.0, 0.0),
        ("no nodule", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_closed_answer_is_read_by_words_and_the_official_rule_is_looser(text, correct, substring):
    row = row_of("no", text, options=("yes", "no"))
    assert (row["correct"], row["closed"], row["substring"], row["open"]) == (correct, correct, substring, None)


def test_an_open_answer_is_matched_whole_and_recalled_in_part():
    row = row_of("left upper zone", "left lower zone", kind="zone")
    assert (row["correct"], row["open"], row["closed"]) == (0.0, 0.0, None)
    assert row["recall"] == pytest.approx(2 / 3)
    assert row_of("left upper zone", "left upper zone .", kind="zone")["correct"] == 1.0


def test_the_official_rules_for_open_answers_reward_repetition_and_single_words():
    rows = [row_of("left upper zone", text, kind="zone") for text in ("left left left left", "left", "left upper zone")]
    assert [row["official_recall"] for row in rows] == pytest.approx([4 / 6, 1 / 3, 1.0])
    assert [row["official_exact"] for row in rows] == pytest.approx([1 / 4, 1.0, 1.0])
    closed = row_of("no", "no", options=("yes", "no"))
    assert (closed["official_recall"], closed["official_exact"]) == (None, None)


def test_a_closed_answer_counts_with_or_against_what_the_text_suggests():
    options = ("yes", "no")
    rows = [row_of("no", "no", options=options, prior=prior) for prior in ("no", "yes", "")]
    assert [(row["with_prior"], row["against_prior"]) for row in rows] == [(1.0, None), (None, 1.0), (None, None)]


@pytest.mark.parametrize(
    ("text", "f1", "hallucinated"),
    [
        (REFERENCE, 1.0, 0.0),
        ("a nodule is seen in the left hilum . the heart is not enlarged . there is no bulla .", 0.8, 0.0),
        (REFERENCE.replace("left", "right"), 2 / 3, 0.25),
        (REFERENCE.replace("no mass", "a mass"), 6 / 7, 0.25),
        ("no nodule is seen .", 0.0, 1.0),
        ("the moon is large .", 0.0, 1.0),
        ("", 0.0, None),
    ],
)
def test_a_report_is_scored_by_its_facts(text, f1, hallucinated):
    row = row_of(REFERENCE, text, kind=REPORT)
    assert row["correct"] is None
    assert row["fact_f1"] == pytest.approx(f1)
    assert row["hallucinated"] == (None if hallucinated is None else pytest.approx(hallucinated))


def test_a_report_is_also_compared_word_by_word():
    same, other = (row_of(REFERENCE, text, kind=REPORT) for text in (REFERENCE, REFERENCE.replace("left", "right")))
    for metric in TEXT_METRICS:
        assert same[metric] == pytest.approx(1.0, abs=1e-4), metric
        # one word of thirty is wrong, and with it a finding
        assert other["fact_f1"] < other[metric] < same[metric], metric
        assert row_of(REFERENCE, "", kind=REPORT)[metric] == 0.0
        assert row_of("no", "no", options=("yes", "no"))[metric] is None


def test_absences_hold_for_what_the_full_report_does_not_name():
    truth = report_facts(REFERENCE)
    assert [is_true(fact, truth) for fact in ("no fibrosis", "no nodule", "nodule somewhere", "mass somewhere")] == [
        True,
        False,
        True,
        False,
    ]


def test_length_is_counted_in_words():
    assert row_of("no", "there is no nodule", options=("yes", "no"))["words"] == 4
