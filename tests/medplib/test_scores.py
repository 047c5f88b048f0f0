"""Scores of hand-made answers and masks."""

import numpy as np
import pytest

from lightbox.eval.mask_boundaries import score_boundaries
from lightbox.paper.drawn_regions import MASK, PRESENCE, REGION, Asked
from lightbox.paper.mask_scores import chosen_threshold
from lightbox.paper.samples import Sample, Split
from medplib.evaluate import guess_rows
from medplib.scores import METRICS, blank, score

HALF = np.zeros((8, 8), dtype=bool)
HALF[:, :4] = True
NOTHING = np.zeros((8, 8), dtype=bool)


def sample(task, answer, *, mask=None, options=(), name="heart", number=0):
    kind = f"{task}_class" if task == REGION else task
    asked = Asked(f"q{number}", "what is the region ?", answer, options, kind=kind, task=task, name=name, mask=mask)
    return Sample(asked.id, asked, "case", 0)


def test_answers_are_right_word_by_word():
    region = sample(REGION, "optic disc", mask=HALF, options=("optic disc", "vessel", "macula", "exudate"))
    right, wrong = (score(region, "image", text) for text in ("optic disc", "the optic disc"))
    assert (right["region"], right["correct"], right["score"]) == (1, 1, 1)
    assert wrong["region"] == 0
    assert right["chance"] == 0.25
    assert (right["region_small"], right["region_large"]) == (1, None)  # 32 px
    presence = sample(PRESENCE, "absent")
    assert score(presence, "image", "the heart is absent .")["presence"] == 1
    assert score(presence, "image", "absent")["presence"] == 0
    assert score(presence, "image", "")["dice"] is None


def test_masks_of_what_is_there_and_of_what_is_not():
    there, absent = sample(MASK, "present", mask=HALF), sample(MASK, "absent", mask=NOTHING)
    sure, unsure = np.where(HALF, 9.0, -9.0), np.where(HALF, 9.0, -1.0)
    right = score(there, "image", "the heart <SEG> .", [sure])
    assert (right["dice"], right["iou_present"], right["emitted"], right["false_mask"]) == (1, 1, 1, None)
    loose = score(there, "image", "the heart <SEG> .", [unsure])
    assert loose["dice_present"] == 1
    assert loose["dice_paper"] == pytest.approx(2 / 3)  # at 0.1 all of the picture is inside
    silent = score(there, "image", "the heart is absent .")
    assert (silent["dice"], silent["emitted"]) == (0, 0)
    assert score(absent, "image", "the heart is absent .")["false_mask"] == 0
    false = score(absent, "image", "the heart <SEG> .", [sure])
    assert (false["false_mask"], false["dice"], false["dice_present"]) == (1, 0, None)


def test_outlines_are_compared_where_somebody_asks():
    there, moved = sample(MASK, "present", mask=HALF), np.where(np.roll(HALF, 2, axis=1), 9.0, -9.0)
    assert score(there, "image", "<SEG>", [moved])["hd95"] is None
    row = score(there, "image", "<SEG>", [moved], outlines=score_boundaries)
    assert row["hd95"] == 2
    assert 0 < row["assd"] < 2
    assert score(there, "image", "", outlines=score_boundaries)["hd95"] is None  # nothing is drawn


def test_a_threshold_that_was_chosen_on_other_items_is_scored_beside_the_usual_one():
    faint = np.where(HALF, -1.0, -9.0)  # 0.27 within the half
    there = sample(MASK, "present", mask=HALF)
    assert score(there, "image", "<SEG>", [faint])["dice_chosen"] is None
    row = score(there, "image", "<SEG>", [faint], chosen_threshold([[faint], []], [HALF, NOTHING]))
    assert (row["dice_present"], row["dice_chosen"]) == (0, 1)
    assert chosen_threshold([[], []], [HALF, NOTHING]) == 0.5  # nothing was drawn, so all are equal
    assert chosen_threshold([], []) == 0.5


def test_another_way_back_is_scored_where_a_picture_is_not_square():
    assert (
        score(sample(MASK, "present", mask=HALF), "image", "<SEG>", [np.where(HALF, 9.0, -9.0)])["dice_oblong"] is None
    )
    tall = np.zeros((8, 4), dtype=bool)
    tall[:, :2] = True
    row = score(sample(MASK, "present", mask=tall), "image", "<SEG>", [np.where(tall, 9.0, -9.0)])
    # of an image half as wide as high the official window shows its right half, and as much filling
    assert (row["dice_oblong"], row["dice_official"]) == (1, 0)
    assert score(sample(MASK, "absent", mask=~tall & tall), "image", "")["dice_official"] is None


def test_several_masks_of_one_answer_are_one():
    left, right = np.where(HALF, 9.0, -9.0), np.where(HALF, -9.0, 9.0)
    both = sample(MASK, "present", mask=np.ones((8, 8), dtype=bool))
    assert score(both, "image", "the lung <SEG> and <SEG> .", [left, right])["dice"] == 1


def test_a_baseline_knows_words_alone():
    train = [sample(MASK, "present", mask=HALF, number=k) for k in range(3)]
    train.append(sample(MASK, "absent", mask=NOTHING, number=3))
    split = Split("train", train, [np.zeros((8, 8), np.uint8)], ["case"])
    by_word, by_kind = (guess_rows(split, split, method) for method in ("question_only", "majority"))
    assert [row["dice"] for row in by_word] == [1, 1, 1, 0]
    assert [row["dice"] for row in by_kind] == [0, 0, 0, 1]
    assert [row["emitted"] for row in by_kind] == [0, 0, 0, 0]


def test_the_commonest_answer_about_presence_names_the_class_that_is_asked_for():
    train = [sample(PRESENCE, "present", name=name, number=k) for k, name in enumerate(("lung", "lung", "heart"))]
    split = Split("train", train, [np.zeros((8, 8), np.uint8)], ["case"])
    assert [row["presence"] for row in guess_rows(split, split, "majority")] == [1, 1, 1]


def test_a_row_has_every_column():
    assert set(blank("a", "image", "mask")) == {"item", "condition", "kind", *METRICS}
