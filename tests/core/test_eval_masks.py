"""Scores of masks by hand: empty ones, both means on an unbalanced set, thresholds, outlines."""

import numpy as np
import pytest

from lightbox.eval.mask_boundaries import score_boundaries
from lightbox.eval.masks import best_threshold, drawn_at, mean_of, modality_means, score_mask, summary

EMPTY, FULL = np.zeros((3, 4), bool), np.ones((3, 4), bool)


def block(rows, columns, hw=(3, 4)):
    mask = np.zeros(hw, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_scores_by_hand():
    scores = score_mask(block((0, 2), (0, 3)), block((1, 3), (1, 4)))  # 6 and 6 pixels, 2 shared
    assert scores == {
        "dice": pytest.approx(1 / 3),
        "iou": 0.2,
        "dice_0": pytest.approx(1 / 3),
        "iou_0": 0.2,
        "dice_present": pytest.approx(1 / 3),
        "iou_present": 0.2,
        "emitted": 1.0,
        "false_mask": None,
    }


@pytest.mark.parametrize(
    ("drawn", "true", "dice", "dice_0", "present", "false_mask"),
    [
        (EMPTY, EMPTY, 1.0, 0.0, None, 0.0),
        (None, EMPTY, 1.0, 0.0, None, 0.0),
        (FULL, EMPTY, 0.0, 0.0, None, 1.0),
        (EMPTY, FULL, 0.0, 0.0, 0.0, None),
        (None, FULL, 0.0, 0.0, 0.0, None),
        (FULL, FULL, 1.0, 1.0, 1.0, None),
    ],
)
def test_empty_masks_under_each_convention(drawn, true, dice, dice_0, present, false_mask):
    scores = score_mask(drawn, true)
    assert (scores["dice"], scores["iou"]) == (dice, dice)
    assert (scores["dice_0"], scores["iou_0"]) == (dice_0, dice_0)
    assert (scores["dice_present"], scores["iou_present"]) == (present, present)
    assert scores["false_mask"] == false_mask
    assert scores["emitted"] == float(drawn is not None)


def test_dice_follows_from_iou():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = score_mask(rng.random((9, 7)) < 0.4, rng.random((9, 7)) < 0.3)
        assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


def test_the_two_means_differ_where_modalities_do():
    items = [score_mask(FULL, FULL)] * 8 + [score_mask(EMPTY, FULL)] * 2
    modalities = ["ct"] * 8 + ["pet"] * 2
    means = summary(items, modalities)
    assert (means["dice"], means["dice/modalities"]) == (0.8, 0.5)
    assert means["false_mask"] is None
    assert modality_means([1.0, None, 0.5], ["ct", "mr", "ct"]) == {"ct": 0.75, "mr": None}
    assert mean_of([None, None]) is None
    assert summary([], []) == {}


def test_a_threshold_is_on_the_probability():
    logits = np.log(np.array([[0.09, 0.11, 0.49, 0.51]]) / (1 - np.array([[0.09, 0.11, 0.49, 0.51]])))
    assert drawn_at(logits).tolist() == [[False, False, False, True]]
    assert drawn_at(logits, 0.1).tolist() == [[False, True, True, True]]


def test_the_best_threshold_is_that_of_the_items_and_0_5_among_equals():
    true = block((0, 1), (0, 2))
    sure = np.where(true, 5.0, -5.0)
    assert best_threshold([sure], [true]) == 0.5
    shy = np.where(true, -1.0, -2.0)  # 0.27 inside, 0.12 outside
    assert best_threshold([shy, shy], [true, true]) == 0.25
    bold = np.full((3, 4), 1.0)  # 0.73 of a mask where nothing is
    assert best_threshold([bold], [EMPTY]) == 0.75
    with pytest.raises(ValueError, match="one item or more"):
        best_threshold([], [])


def test_outlines_by_hand():
    true, moved = block((8, 24), (8, 24), (40, 64)), block((11, 27), (8, 24), (40, 64))  # three rows down
    here = score_boundaries(true, true, tolerance=0.5)
    assert here == {"hd95": 0.0, "assd": 0.0, "nsd": 1.0}
    apart = score_boundaries(moved, true, tolerance=3.0)
    assert apart["hd95"] == pytest.approx(3.0)
    assert apart["nsd"] == pytest.approx(1.0)
    assert 0 < apart["assd"] < 3
    assert score_boundaries(moved, true, tolerance=2.0)["nsd"] < 0.7
    assert score_boundaries(moved, true, tolerance=3.0, spacing=(2.0, 0.5))["hd95"] > 3.0  # rows are 2 mm high


@pytest.mark.parametrize(("drawn", "true"), [(None, FULL), (EMPTY, FULL), (FULL, EMPTY), (EMPTY, EMPTY)])
def test_an_empty_mask_has_no_outline(drawn, true):
    assert score_boundaries(drawn, true, tolerance=1.0) == {"hd95": None, "assd": None, "nsd": None}


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\) and the true one \(3, 4\)"):
        score_mask(FULL.T, FULL)
    with pytest.raises(ValueError, match=r"\(4, 3\) and the true one \(3, 4\)"):
        score_boundaries(FULL.T, FULL, tolerance=1.0)
