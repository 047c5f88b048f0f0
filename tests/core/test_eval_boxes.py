"""Scores of boxes by hand, errors that add up, and RoDeO against its authors' numbers and against its own blindness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightbox.eval.boxes import ERRORS, LabelledBox, iou_matrix, rodeo, score_boxes, summary
from lightbox.eval.detection import average_precision
from lightbox.records import Box, box_iou

SQUARE = Box(0.2, 0.2, 0.6, 0.6)
ends = st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(sorted)
some_boxes = st.lists(
    st.tuples(ends, ends).map(lambda xy: Box(xy[0][0] / 40, xy[1][0] / 40, xy[0][1] / 40, xy[1][1] / 40)), max_size=5
)


@given(drawn=some_boxes, true=some_boxes)
def test_overlaps_are_those_of_the_records_and_errors_add_up(drawn, true):
    expected = np.array([[box_iou(a, b) for b in true] for a in drawn]).reshape(len(drawn), len(true))
    np.testing.assert_allclose(iou_matrix(drawn, true), expected, atol=1e-12)
    counts = score_boxes(drawn, true).counts
    assert sum(counts.values()) - counts["over-detection"] == len(true)
    assert sum(counts.values()) - counts["under-detection"] == len(drawn)


@pytest.mark.parametrize(
    ("shift", "kind"), [(0.0, "hit"), (0.12, "hit"), (0.2, "near miss"), (0.27, "poor overlap"), (0.4, "wrong region")]
)
def test_a_box_that_moves_away_gets_worse_by_name(shift, kind):
    score = score_boxes([Box(0.2 + shift, 0.2, 0.6 + shift, 0.6)], [SQUARE])
    assert {name for name, count in score.counts.items() if count} == {kind}
    assert (score.acc50, score.acc30) == (kind == "hit", kind in ("hit", "near miss"))


def test_every_true_box_counts_and_silence_scores_zero():
    other = Box(0.7, 0.7, 0.9, 0.9)
    one = score_boxes([SQUARE], [SQUARE, other])
    assert (one.best_iou, one.acc50, one.counts["under-detection"]) == (0.5, True, 1)
    assert score_boxes([SQUARE, other], [SQUARE]).counts["over-detection"] == 1
    silent = score_boxes([], [SQUARE])
    assert (silent.best_iou, silent.acc30, silent.is_false_alarm) == (0.0, False, None)


def test_an_absent_finding_is_a_false_alarm_or_nothing():
    scores = [score_boxes([], []), score_boxes([SQUARE, SQUARE], []), score_boxes([SQUARE], [SQUARE])]
    assert [score.is_false_alarm for score in scores] == [False, True, None]
    means = summary(scores)
    assert (means["false_alarm_rate"], means["best_iou"], means["acc50"]) == (0.5, 1.0, 1.0)
    assert (means["hit"], means["over-detection"]) == (1.0, pytest.approx(2 / 3))
    assert set(summary([]).values()) == {None}


# ---- RoDeO

CLASSES = ("a", "b", "c")


def draw_pairs(seed):
    """Six images: true boxes, and boxes near most of them, some of another class, some beside."""
    rng = np.random.default_rng(seed)
    drawn, true = [], []
    for _ in range(6):
        truths, answers = [], []
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = [*rng.uniform(0, 0.7, 2).round(3).tolist(), *rng.uniform(0.05, 0.3, 2).round(3).tolist()]
            truths.append(LabelledBox(CLASSES[rng.integers(3)], Box(x, y, x + w, y + h)))
            if rng.random() < 0.8:
                name = truths[-1].label if rng.random() < 0.7 else "c"
                answers.append(LabelledBox(name, Box(x + 0.02, y - 0.03, x + 0.8 * w + 0.02, y + h)))
        true.append(truths)
        drawn.append(answers + [LabelledBox("b", Box(0.1, 0.1, 0.3, 0.4))] * int(rng.integers(0, 2)))
    return drawn, true


# total, localisation, shape, classification by github.com/FeliMe/RoDeO at 280a959
BY_AUTHORS = {
    0: (0.386538262855, 0.534415050205, 0.378785831903, 0.307692307692),
    1: (0.351145009411, 0.746155613476, 0.534766120577, 0.187500000000),
    2: (0.497941352099, 0.694449531435, 0.479655616530, 0.400000000000),
    3: (0.610395660444, 0.684796369124, 0.546578039782, 0.615384615385),
}


@pytest.mark.parametrize("seed", BY_AUTHORS)
def test_rodeo_is_that_of_its_authors(seed):
    ours = rodeo(*draw_pairs(seed), classes=CLASSES)
    assert (ours.total, ours.localisation, ours.shape, ours.classification) == pytest.approx(BY_AUTHORS[seed], abs=1e-9)


def test_rodeo_likes_a_box_in_the_middle_that_average_precision_does_not():
    """K6 of the dossier: zero-shot models have RoDeO .39 to .46 with mAP50 under .003 on VinDr."""
    rng = np.random.default_rng(0)
    true, drawn = [], []
    for _ in range(400):
        label = CLASSES[rng.integers(3)]
        width, height = np.exp(rng.uniform(np.log(0.12), np.log(0.5), 2)).tolist()
        x, y = np.clip(rng.normal(0.5, 0.17, 2), [width / 2, height / 2], [1 - width / 2, 1 - height / 2]).tolist()
        true.append([LabelledBox(label, Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2))])
        drawn.append([LabelledBox(label, Box(0.35, 0.35, 0.65, 0.65))])  # the class is in the prompt
    blind = rodeo(drawn, true, classes=CLASSES)
    assert blind.total > 0.3
    assert average_precision(drawn, true).map50 < 0.05


def test_rodeo_is_bounded_by_silence_and_truth():
    _, true = draw_pairs(0)
    assert rodeo(true, true, classes=CLASSES).total == pytest.approx(1, abs=1e-5)
    assert rodeo([[]] * 6, true, classes=CLASSES).total == 0
    made_up = [[box._replace(label="x") for box in boxes] for boxes in true]
    assert rodeo(made_up, true, classes=CLASSES).classification == 0
    with pytest.raises(ValueError, match="two classes"):
        rodeo(true, true, classes=["a"])
    with pytest.raises(ValueError, match="outside the classes"):
        rodeo(true, true, classes=["a", "z"])


def test_every_error_has_a_share():
    assert set(summary([score_boxes([], [])])) >= {"hit", *ERRORS}


def test_a_box_too_many_costs_as_much_as_one_too_few():
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
    for drawn, true, best in (([left, right], [left], 1.0), ([left], [left, right], 0.5), ([left, left], [left], 1.0)):
        score = score_boxes(drawn, true)
        assert (score.best_iou, score.paired_iou) == (best, 0.5)
    assert score_boxes([right, left], [left, right]).paired_iou == 1.0
    assert score_boxes([], [left]).paired_iou == 0.0
    assert score_boxes([left], []).paired_iou is None
