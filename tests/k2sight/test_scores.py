"""What boxes are worth, by hand-made items."""

import pytest

from k2sight.data import Target
from k2sight.evaluate import MISSES_SHOWN, examples_of
from k2sight.scores import COUNTS, METRICS, score, score_set
from lightbox.backbones.box_text import BoxReading
from lightbox.eval.boxes import LabelledBox
from lightbox.paper.samples import Sample
from lightbox.records import Box

LEFT, RIGHT = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
OTHER = Target("vaba", True, {"shape": "disc"}, (RIGHT,))
TARGET = Target(
    "zexa", True, {"shape": "oval"}, (LEFT,), part="known", neighbours={"density": OTHER}, chosen_kind="density"
)
ASKED = Sample("a", TARGET, "c", 0)
ABSENT = Sample("b", Target("zexa", False, {}, (), part="known"), "c", 0)


def reading(*boxes, is_parsed=True, score=0.9):
    return BoxReading(tuple(LabelledBox("", box, score) for box in boxes), is_parsed, 0)


def test_a_hit_is_scored_whatever_label_the_model_wrote():
    row = score(ASKED, "image", reading(LEFT))
    assert (row["best_iou"], row["acc50"], row["false_alarm"], row["confidence"]) == (1.0, 1.0, None, 0.9)
    assert (row["item"], row["condition"], row["kind"]) == ("a", "image", "known")


def test_no_box_over_a_finding_scores_nothing_and_is_parsed():
    row = score(ASKED, "image", reading())
    assert (row["best_iou"], row["acc30"], row["parsed"], row["confidence"]) == (0.0, 0.0, 1.0, None)


def test_an_unreadable_text_counts_as_wrong():
    row = score(ASKED, "image", reading(is_parsed=False))
    assert (row["best_iou"], row["parsed"]) == (0.0, 0.0)


def test_an_absent_finding_has_no_overlap_and_may_raise_a_false_alarm():
    assert [score(ABSENT, "image", r)["false_alarm"] for r in (reading(), reading(LEFT))] == [0.0, 1.0]
    assert score(ABSENT, "image", reading(LEFT))["best_iou"] is None


def test_overlap_beside_a_neighbour_is_told_by_the_attribute_that_tells_them_apart():
    row = score(ASKED, "image", reading(LEFT))
    assert (row["paired_iou_beside_density"], row["paired_iou_beside_shape"]) == (1.0, None)
    assert (row["paired_iou_apart_density"], row["paired_iou_apart_shape"]) == (None, 1.0)
    real = Sample("r", Target("WBC", True, {}, (LEFT,)), "c", 0)
    assert score(real, "image", reading(LEFT))["paired_iou_apart_shape"] is None


def test_a_model_that_boxes_everything_pays_for_it():
    row = score(ASKED, "image", reading(LEFT, RIGHT))
    assert (row["best_iou"], row["paired_iou"], row["boxes"]) == (1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("boxes", "kinds"),
    [
        ([LEFT], {"hit"}),
        ([Box(0.0, 0.0, 0.2, 1.0)], {"near_miss"}),  # 0.4 of the true box
        ([Box(0.0, 0.0, 0.1, 1.0)], {"poor_overlap"}),
        ([RIGHT], {"wrong_region"}),
        ([LEFT, RIGHT], {"hit", "over_detection"}),
        ([], {"under_detection"}),
    ],
)
def test_each_box_counts_under_one_kind_of_error(boxes, kinds):
    row = score(ASKED, "image", reading(*boxes))
    assert {name for name in COUNTS.values() if row[name]} == kinds
    assert sum(row[name] for name in COUNTS.values()) == len(kinds)


@pytest.mark.parametrize(("box", "moved"), [(LEFT, 0.0), (RIGHT, 1.0), (None, 0.0), (Box(0.4, 0.0, 0.9, 1.0), 1.0)])
def test_a_box_has_moved_where_it_overlaps_the_neighbour_more(box, moved):
    assert score(ASKED, "swapped", reading(*([box] if box else [])))["moved"] == moved
    assert score(ABSENT, "swapped", reading(*([box] if box else [])))["moved"] is None


def test_a_set_has_a_row_for_each_part_and_ranks_by_confidence():
    second = Sample("c", Target("vaba", True, {}, (RIGHT,), part="known"), "d", 1)
    far = Sample("d", Target("juka", True, {}, (RIGHT,), part="unseen"), "e", 2)
    sure = [reading(LEFT, score=0.9), reading(LEFT, score=0.1), reading(RIGHT), reading()]
    rows = score_set([ASKED, ABSENT, second, far], "image", sure)
    assert [(row["kind"], row["item"]) for row in rows] == [("set known", "known/set"), ("set unseen", "unseen/set")]
    assert rows[0]["map50"] == pytest.approx(1.0)  # the false alarm is less sure than the hit
    assert rows[1]["map50"] == 0.0
    assert rows[1]["rodeo"] is None  # of one class there is no correlation
    unsure = [reading(LEFT, score=0.1), reading(LEFT, score=0.9), *sure[2:]]
    assert score_set([ASKED, ABSENT, second, far], "image", unsure)[0]["map50"] < 1


def test_every_row_has_every_column():
    rows = [score(ASKED, "image", reading()), score(ABSENT, "swapped", reading())]
    rows += score_set([ASKED], "image", [reading()])
    assert all(set(row) == {"item", "condition", "kind", *METRICS} for row in rows)


def test_examples_begin_with_misses_beside_each_kind_of_look_alike():
    def item(image, kind):
        near = {kind: OTHER} if kind else {}
        return Sample(
            f"{image}{kind}",
            Target("zexa", True, {"shape": "oval"}, (LEFT,), neighbours=near, chosen_kind=kind),
            "c",
            image,
        )

    items = [item(k, "") for k in range(3)] + [item(3 + k, kind) for k, kind in enumerate(["location", "shape"] * 3)]
    shown = examples_of(items, [reading(LEFT)] * 3 + [reading(RIGHT)] * 6)
    beside = [[label for label in one.told if label.startswith("beside")] for one in shown]
    assert (
        beside[: 2 * MISSES_SHOWN]
        == [["beside another shape"]] * MISSES_SHOWN + [["beside another location"]] * MISSES_SHOWN
    )
    assert [one.is_right for one in shown[2 * MISSES_SHOWN :][:3]] == [True] * 3
    assert len({one.sample.image for one in shown}) == len(shown)
    right = examples_of(items, [reading(LEFT)] * 9)
    assert [one.sample.id for one in right[:3]] == [one.id for one in items[:3]]
