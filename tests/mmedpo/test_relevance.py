"""Judges, their debate, and the three readings of how a score becomes a weight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightbox.errors import RequestError
from mmedpo.config import ObjectiveConfig
from mmedpo.relevance import JUDGES, debate, normalised, opinions, scored, weights_of

TENTHS = st.lists(st.integers(0, 10), min_size=2, max_size=60).map(lambda values: np.array(values) / 10)
KINDS = ["text", "image"] * 50


@given(TENTHS)
def test_the_affine_reading_has_mean_1_and_variance_a_tenth_before_the_cut(scores):
    free = normalised(scores, "affine", low=-np.inf, high=np.inf)
    assert free.mean() == pytest.approx(1, abs=1e-9)
    assert free.var() == pytest.approx(0.1 if len(set(scores)) > 1 else 0, abs=1e-9)


@given(TENTHS)
def test_the_affine_reading_keeps_order_and_bounds(scores):
    weights = normalised(scores, "affine")
    assert ((weights >= 0.75) & (weights <= 1.25)).all()
    assert (np.diff(weights[np.argsort(scores, kind="stable")]) >= -1e-12).all()


def test_the_other_readings_make_weights_of_no_effect():
    scores = np.array([1.0, 0.9, 0.8, 0.2, 0.0])
    assert (normalised(scores, "literal")[1:] == 0.75).all()
    assert (normalised(scores, "fitted") == 0.75).mean() >= 0.6
    assert len(set(normalised(scores, "affine"))) > 2


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1, np.inf])
def test_a_score_that_is_missing_or_out_of_range_is_refused(wrong):
    with pytest.raises(RequestError, match="Score 1 of 3"):
        normalised(np.array([0.5, wrong, 0.5]), "affine")


def weigh(scores, how, seed=0):
    return weights_of(scores, KINDS, ObjectiveConfig(method="dpo", weights=how), seed=seed)


def test_permuted_weights_keep_those_of_each_kind_and_belong_to_other_pairs():
    scores = np.random.default_rng(0).integers(0, 11, 100) / 10
    true, permuted = weigh(scores, "relevance"), weigh(scores, "permuted")
    for start in (0, 1):
        assert sorted(permuted[start::2]) == sorted(true[start::2])
    assert permuted.mean() == pytest.approx(true.mean())
    assert abs(np.corrcoef(true, permuted)[0, 1]) < 0.35
    assert (weigh(scores, "permuted", seed=1) != permuted).any()


def test_inverted_weights_turn_the_order_and_uniform_ones_have_none():
    scores = np.random.default_rng(0).integers(0, 11, 100) / 10
    assert np.corrcoef(weigh(scores, "relevance"), weigh(scores, "inverted"))[0, 1] < -0.9
    assert (weigh(scores, "uniform") == 1).all()


def test_a_debate_ends_in_consensus_or_in_the_mean_of_all_that_was_said():
    assert debate(np.array([[0.6], [0.7], [0.6]])).tolist() == [0.6]
    # the second never hears what it could adopt, so five rounds of 0, 1 are averaged
    assert debate(np.array([[0.0], [1.0]])).tolist() == [0.5]
    # the third is too far from the first and is not heard by it
    assert debate(np.array([[0.5], [0.5], [0.8]])).tolist() == [pytest.approx(0.6)]
    # settled in the first round, whatever else the last judge would have said
    assert debate(np.array([[0.6], [0.5], [0.8]])).tolist() == [0.6]


def test_several_judges_are_nearer_to_the_truth_than_one():
    truth = np.random.default_rng(1).choice([0.1, 0.6, 0.9], 2000)
    errors = {
        name: np.abs(scored(truth, name, seed=0) - truth).mean() for name in ("known", "single", "mean", "debate")
    }
    assert errors["known"] == 0
    assert errors["mean"] < errors["single"]
    assert errors["debate"] < errors["single"]
    own = opinions(truth, JUDGES, seed=0)
    assert ((own >= 0) & (own <= 1)).all()
    assert np.abs(own * 10 - np.round(own * 10)).max() < 1e-9
