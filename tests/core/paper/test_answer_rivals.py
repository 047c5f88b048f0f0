"""False answers to questions of real sets: as long, given elsewhere, and not true in other words."""

from collections import Counter

import pytest

from lightbox.paper.answer_rivals import may_agree, pool_of
from lightbox.records import Question

PLANE = "in what plane is this ?"
ANSWERS = ("axial", "axial", "axial", "coronal", "sagittal", "transverse", "3d reconstruction", "frontal")


@pytest.fixture(scope="module")
def asked():
    planes = [Question(f"p{n}", PLANE.upper() if n else PLANE, own, kind="plane") for n, own in enumerate(ANSWERS)]
    once = Question("once", "which plane was chosen ?", "oblique", kind="plane")
    organ = Question("organ", "which organ ?", "lung, mediastinum, pleura", kind="organ")
    closed = Question("closed", "is it a ct ?", "no", options=("yes", "no"), answer_index=1, kind="plane")
    return {question.id: question for question in (*planes, once, organ, closed)}


def test_near_answers_are_those_of_the_same_words_as_often_as_they_are_given(asked):
    pool = pool_of(asked.values())
    choices = pool.rivals(asked["p4"])  # sagittal
    assert Counter(choices["near"]) == Counter({"axial": 3, "coronal": 1, "transverse": 1, "frontal": 1})
    assert Counter(choices["far"]) == Counter({"3d reconstruction": 1, "oblique": 1})


def test_what_may_be_true_in_other_words_is_no_rival(asked):
    pool = pool_of(asked.values())
    near = pool.rivals(asked["p0"])["near"]  # axial
    assert "transverse" not in near
    assert "axial" not in near
    assert set(pool.rivals(asked["p3"])["near"]) == {"axial", "sagittal", "transverse"}  # coronal, which frontal is


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("t2", "MR - T2 weighted", True),
        ("iv", "gi and iv", True),
        ("contrast", "noncontrast", False),
        ("AP", "frontal", True),
        ("ap", "pa", False),
        ("skull and contents", "spine and contents", False),
    ],
)
def test_answers_agree_where_one_has_all_words_of_the_other(one, other, agree):
    assert may_agree(one, other) is may_agree(other, one) is agree


def test_a_question_of_new_words_takes_answers_of_its_kind_and_a_lonely_one_takes_none(asked):
    pool = pool_of(asked.values())
    assert set(pool.rivals(asked["once"])["near"]) == {"axial", "coronal", "sagittal", "transverse", "frontal"}
    assert pool.rivals(asked["organ"]) == {"near": [], "far": []}


def test_yes_and_no_are_flipped_and_never_counted(asked):
    pool = pool_of(asked.values())
    assert pool.rivals(asked["closed"]) == {"near": ["yes"], "far": []}
    assert not {"yes", "no"} & set(pool.rivals(asked["once"])["near"] + pool.rivals(asked["once"])["far"])
