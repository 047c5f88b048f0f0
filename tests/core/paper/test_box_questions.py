"""Questions about boxed objects: points that one object alone holds, classes in equal numbers, images on one side."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.box_questions import (
    KIND,
    class_questions,
    class_splits,
    evenly,
    in_square,
    point_in_fractions,
    point_in_tokens,
)
from lightbox.paper.schema import DataConfig
from lightbox.records import Box, Case, Finding

OPTIONS = ("disc", "dot")
N_IMAGES = 10


def case_of(*objects, pixels=(60, 80), name="a"):
    findings = tuple(Finding(label, boxes=boxes) for label, *boxes in objects for boxes in [tuple(boxes)])
    return Case(name, (np.zeros(pixels, np.uint8),), findings=findings)


def points_of(asked):
    return [tuple(float(value) for value in re.findall(r"0\.\d+", own.text)) for own in asked]


@pytest.fixture
def yolo_set(tmp_path):
    """Wide images with three discs and a dot each, one of them with two dots, in YOLO's form."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("disc\ndot\n")
    for number in range(N_IMAGES):
        pixels = np.full((40, 80, 3), number * 20, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        rows = [f"0 {x} 0.5 0.2 0.4" for x in (0.2, 0.45, 0.7)] + ["1 0.9 0.1 0.05 0.1"]
        rows += ["1 0.1 0.9 0.05 0.1"] * (number == 0)
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(rows) + "\n")
    return DataConfig(n_train=1000, n_test=1000, source="yolo", root=str(tmp_path))


def test_each_object_is_asked_for_by_a_point_that_lies_in_it_alone():
    left, right, dot = Box(0.0, 0.0, 0.5, 0.5), Box(0.4, 0.0, 0.9, 0.5), Box(0.6, 0.2, 0.7, 0.3)
    case = case_of(("disc", left, right), ("dot", dot), ("line", Box(0.0, 0.8, 1.0, 0.9)))
    asked = class_questions(case, OPTIONS, point_in_fractions)
    assert [(own.answer, own.boxes) for own in asked] == [("disc", (left,)), ("disc", (right,))]  # the dot is covered
    for own, (x, y) in zip(asked, points_of(asked), strict=True):
        inside = [box for box in (left, right, dot) if box.x0 <= x < box.x1 and box.y0 <= y < box.y1]
        assert inside == list(own.boxes)
        assert own.text.endswith("? disc, dot?")
        assert own.options[own.answer_index] == own.answer
        assert own.kind == KIND  # no kind tells a class
    assert class_questions(case, OPTIONS, point_in_fractions) == asked


def test_points_of_a_box_lie_around_its_middle_and_vary():
    box = Box(0.2, 0.2, 0.6, 0.8)
    cases = [case_of(("disc", box), name=str(number)) for number in range(200)]
    points = np.array([points_of(class_questions(case, OPTIONS, point_in_fractions))[0] for case in cases])
    assert (points.min(0) >= (0.295, 0.345)).all()
    assert (points.max(0) <= (0.505, 0.655)).all()
    assert np.allclose(points.std(0), np.array([0.2, 0.3]) / 12**0.5, rtol=0.15)


def test_a_point_as_tokens_names_the_bin_that_holds_it():
    write = point_in_tokens(64)
    assert write((0.0, 0.5)) == "<loc_0><loc_32>"
    assert write((1.0, 1 - 1e-9)) == "<loc_63><loc_63>"


def test_boxes_move_into_the_square_that_is_shown():
    (finding,) = in_square(case_of(("disc", Box(0.0, 0.0, 1.0, 1.0)), pixels=(60, 80))).findings
    assert finding.boxes == (pytest.approx((0.0, 0.125, 1.0, 0.875)),)


def test_answers_are_as_many_from_as_many_cases_as_there_are():
    boxes = [Box(x / 10, y / 10, x / 10 + 0.05, y / 10 + 0.05) for y in range(3) for x in range(10)]
    cases = [case_of(("disc", *boxes[:20]), ("dot", *boxes[20 : 20 + k]), name=str(k)) for k in (1, 2, 3)]
    asked = [own for case in cases for own in class_questions(case, OPTIONS, point_in_fractions)]
    chosen = evenly(asked, 1000)
    assert Counter(own.answer for own in chosen) == {"disc": 6, "dot": 6}
    assert Counter(own.id.partition("/")[0] for own in chosen if own.answer == "disc") == {"1": 2, "2": 2, "3": 2}
    assert Counter(own.answer for own in evenly(asked, 5)) == {"disc": 2, "dot": 2}
    # not the first of a file, which may lie in one corner
    first = {own.id for case in cases for own in class_questions(case, OPTIONS, point_in_fractions)[:2]}
    assert {own.id for own in chosen if own.answer == "disc"} != first
    assert evenly([], 5) == []


def test_parts_hold_out_every_image_once_and_no_image_is_on_two_sides(yolo_set):
    scored_ids = []
    for seed in range(5):
        train, scored = class_splits(yolo_set, seed=seed, parts=5, write_point=point_in_fractions)
        assert len(train.case_ids) == 8
        assert not set(train.case_ids) & set(scored.case_ids)
        scored_ids += scored.case_ids
        for split in (train, scored):
            counts = Counter(sample.record.answer for sample in split.samples)
            assert counts["disc"] == counts["dot"] == len(split.case_ids) + ("0" in split.case_ids)
            for sample in split.samples:
                assert split.case_ids[sample.image] == sample.case_id
                assert split.images[sample.image].stem == sample.case_id
    assert sorted(scored_ids) == sorted(str(number) for number in range(N_IMAGES))


def test_boxes_of_a_wide_image_are_fractions_of_its_square(yolo_set):
    train, _ = class_splits(yolo_set, seed=0, parts=5, write_point=point_in_fractions)
    discs = {box for sample in train.samples if sample.record.answer == "disc" for box in sample.record.boxes}
    assert {(round(box.y0, 3), round(box.y1, 3)) for box in discs} == {(0.4, 0.6)}


def test_numbers_are_bounds_and_a_split_without_a_class_is_refused(yolo_set):
    few = DataConfig(n_train=6, n_test=2, source="yolo", root=yolo_set.root)
    train, scored = class_splits(few, seed=0, parts=5, write_point=point_in_fractions)
    assert (len(train.samples), len(scored.samples)) == (6, 2)
    with pytest.raises(RequestError, match="disc, dot"):  # the set has no official test part
        class_splits(few, seed=0, parts=0, write_point=point_in_fractions)
