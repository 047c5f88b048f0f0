"""Sets of few images: every image is held out once, and released pairs are matched by the name of their image."""

import json

import numpy as np
import pytest
from PIL import Image

from lightbox.paper.held_images import in_memory, released_pairs, rotated, split_of
from lightbox.paper.samples import Split
from lightbox.records import Case, Question

SIZE_WH = (40, 20)


@pytest.fixture
def few(tmp_path):
    cases = []
    for n in range(10):
        path = tmp_path / f"scan{n}.png"
        pixels = np.random.default_rng(n).integers(1, 256, (*SIZE_WH[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        questions = tuple(Question(f"{n}-{k}", "is it ?", "yes", kind="presence") for k in range(2))
        cases.append(Case(f"scan{n}", (path,), patient_id=f"patient{n // 2}", questions=questions, split="test"))
    return cases


def held(cases):
    return {case.id for case in cases if case.split == "test"}


def test_as_many_seeds_as_parts_hold_out_every_image_once_and_no_patient_is_on_two_sides(few):
    divided = [rotated(few, parts=5, seed=seed) for seed in range(5)]
    assert sorted(name for own in divided for name in held(own)) == sorted(case.id for case in few)
    for own in divided:
        parts = {(case.patient_id, case.split) for case in own}
        assert len(parts) == len({patient for patient, _ in parts})
        assert {case.split for case in own} == {"train", "test"}
    later = [held(rotated(few, parts=5, seed=seed)) for seed in range(900, 905)]
    assert later != [held(own) for own in divided]


def test_validation_holds_out_another_part_than_the_test(few):
    scored = {case.id for case in rotated(few, parts=5, seed=2, held="validation") if case.split == "validation"}
    assert scored == held(rotated(few, parts=5, seed=3))
    assert not scored & held(rotated(few, parts=5, seed=2))


def test_a_split_keeps_images_that_are_asked_about(few):
    split = split_of("test", few, lambda case: case.questions if case.id != "scan1" else (), limit=5)
    assert split.ids == ["0-0", "0-1", "2-0", "2-1", "3-0"]
    assert split.case_ids == ["scan0", "scan2", "scan3"]
    assert [split.case_ids[sample.image] for sample in split.samples] == [s.case_id for s in split.samples]


def test_images_are_grey_squares_of_one_size(few):
    split = in_memory(Split("test", [], [few[0].images[0]], ["scan0"]), 16)
    image = split.images[0]
    assert (image.shape, image.dtype) == ((16, 16), np.uint8)
    assert image[4:12].all()
    assert not image[:4].any()
    assert not image[12:].any()


def test_released_pairs_go_by_image_and_repeat_no_question(tmp_path):
    rows = [
        ("Is it large?", "Question: Is it large?\n\n yes", "No, it is  small."),
        ("Where is it?", "left lobe", "It lies in the right lobe."),
    ]
    turns = [
        {
            "id": number,
            "image": "deep/scan7.jpg",
            "conversations": [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": chosen}],
            "rejected_conversations": [
                {"from": "human", "value": f"<image>\n{asked}"},
                {"from": "gpt", "value": rejected},
            ],
            "weighted_score": number / 2,
        }
        for number, (asked, chosen, rejected) in enumerate(rows)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(turns))
    (pairs,) = released_pairs(tmp_path / "pairs.json").values()
    assert [(own.chosen, own.rejected, own.relevance) for own in pairs] == [
        ("yes", "No, it is small.", 0.0),
        ("left lobe", "It lies in the right lobe.", 0.5),
    ]
