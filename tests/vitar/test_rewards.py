"""Rewards: the table of returns that ViTAR's code gives, DeepEyes' formula, the term for the box, and broken terms."""

import math
from dataclasses import replace

import pytest

from lightbox.errors import RequestError
from lightbox.records import Box
from vitar.rewards import VARIANTS, Result, normal, reward, terms_of

TRUE = Box(0.2, 0.2, 0.4, 0.4)
FAR, HALF = Box(0.7, 0.7, 0.9, 0.9), Box(0.2, 0.2, 0.4, 0.3)
# an episode, and what it earns by each variant, worked out by hand
EPISODES = {
    "box, right answer": (Result(1, (TRUE,), False, "disc", "disc", (TRUE,)), {"A": 1.4, "B": 2.0, "C": 1.9, "D": 1.0}),
    "box, wrong answer": (Result(1, (TRUE,), False, "oval", "disc", (TRUE,)), {"A": 0.4, "B": 0.0, "C": 0.9, "D": 0.0}),
    "right at once": (Result(0, (), False, "disc", "disc", (TRUE,)), {"A": 1.2, "B": 0.8, "C": 1.2, "D": 1.0}),
    "wrong at once": (Result(0, (), False, "oval", "disc", (TRUE,)), {"A": 0.2, "B": 0.0, "C": 0.2, "D": 0.0}),
    "error, right answer": (Result(0, (), True, "disc", "disc", (TRUE,)), {"A": 1.2, "B": 0.6, "C": 1.2, "D": 1.0}),
    "two boxes, no answer": (Result(2, (TRUE,), False, None, "disc", (TRUE,)), {"A": 0.4, "B": 0.0, "C": 0.9, "D": 0}),
    "two errors": (Result(0, (), True, None, "disc", (TRUE,)), {"A": 0.0, "B": -0.2, "C": 0.0, "D": 0.0}),
    "wrong box, right": (
        Result(1, (FAR,), False, "disc", "disc", (TRUE,)),
        {"A": 1.4, "B": 2, "C": 1.4, "D": 1},
    ),
    "half a box, right": (Result(1, (HALF,), False, "disc", "disc", (TRUE,)), {"A": 1.4, "B": 2, "C": 1.65, "D": 1}),
    "one box of two is right": (
        Result(1, (TRUE, FAR), False, "disc", "disc", (TRUE,)),
        {"A": 1.4, "B": 2.0, "C": 1.65, "D": 1.0},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", EPISODES)
def test_an_episode_earns_what_the_formula_says(name, variant):
    result, earned = EPISODES[name]
    assert reward(terms_of(result), variant).total == pytest.approx(earned[variant], abs=1e-6)


def test_the_table_of_returns_of_vitars_code_is_complete():
    """Every return that the code can pay, in order."""
    rows = [*list(EPISODES)[:3], "error, right answer", "two boxes, no answer", "two errors"]
    totals = [reward(terms_of(EPISODES[name][0]), "A").total for name in rows]
    assert totals == pytest.approx([1.4, 0.4, 1.2, 1.2, 0.4, 0.0])


def test_vitar_pays_for_a_box_wherever_it_lies_and_a_term_for_the_box_does_not():
    right, wrong = (terms_of(EPISODES[name][0]) for name in ("box, right answer", "wrong box, right"))
    for variant, gap in {"A": 0.0, "B": 0.0, "C": 0.5, "D": 0.0}.items():
        assert reward(right, variant).total - reward(wrong, variant).total == pytest.approx(gap, abs=1e-6)


def test_terms_stand_apart_and_add_up():
    for result, _ in EPISODES.values():
        for variant in VARIANTS:
            own = reward(terms_of(result), variant)
            assert own.terms.keys() == VARIANTS[variant].keys()
            assert own.total == pytest.approx(sum(own.terms.values()))
            assert own.not_finite == ()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_named_and_counts_nothing(broken):
    terms = terms_of(EPISODES["box, right answer"][0]) | {"iou": broken}
    own = reward(terms, "C")
    assert (own.total, own.not_finite, own.terms["iou"]) == (pytest.approx(1.4), ("iou",), 0.0)
    assert reward(terms, "A").not_finite == ()
    both = reward(terms | {"act": broken}, "C")
    assert (both.total, both.not_finite) == (pytest.approx(1.2), ("act", "iou"))


def test_a_box_that_is_no_number_breaks_its_own_term_only():
    result = replace(EPISODES["box, right answer"][0], boxes=(Box(math.nan, 0, 1, 1),))
    own = reward(terms_of(result), "C")
    assert (own.total, own.not_finite) == (pytest.approx(1.4), ("iou",))


def test_boxes_earn_nothing_where_the_finding_is_absent():
    absent = Result(1, (TRUE,), False, "no", "no")
    assert terms_of(absent)["iou"] == 0.0
    assert reward(terms_of(absent), "C").total == pytest.approx(1.4)


@pytest.mark.parametrize(("answer", "is_same"), [("Left_Lower zone", True), ("left lower zone.", False), ("A", False)])
def test_answers_are_compared_without_spaces_underscores_and_case(answer, is_same):
    assert (normal(answer) == normal("left lower zone")) is is_same


def test_weights_of_ones_own_and_what_is_not_there():
    terms = terms_of(EPISODES["box, wrong answer"][0])
    assert reward(terms, {"iou": 2.0, "act": -1.0}).total == pytest.approx(1.0)
    for wrong in ("E", {"length": 1.0}):
        with pytest.raises(RequestError, match="Choose one of them|Weigh terms"):
            reward(terms, wrong)
