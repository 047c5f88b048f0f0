"""Splits of our own never share a patient or an image; official leakage is counted by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightbox.errors import RequestError
from lightbox.readers.leakage import image_keys, leakage, require_clean
from lightbox.readers.splits import merge_cases, split_by_file, split_by_image
from lightbox.records import Case, Question


def case(case_id, *images, split="", patient=None, texts=("q",)):
    questions = tuple(Question(f"{case_id}-{n}", text, "a") for n, text in enumerate(texts))
    return Case(case_id, tuple(Path(f"{name}.jpg") for name in images), patient, questions=questions, split=split)


def test_leakage_counts_by_hand():
    cases = [
        case("a", "a", split="train", patient="p1", texts=("Is it?", "Where?")),
        case("b", "b", split="train", texts=("Is it?",)),
        case(
            "a", "a", split="test", patient="p1", texts=("is  IT?", "Why?", "Which?")
        ),  # the same image and one question
        case("c", "c", split="test", patient="p1", texts=("Is it?",)),  # the same patient, another image
        case("d", "d", split="test", patient="p2", texts=("Is it?", "Where?")),
        case("e", "e", split="", texts=("Is it?",)),
    ]
    (found,) = leakage(cases)
    assert (found.earlier, found.later) == ("train", "test")
    assert (found.images, found.images_shared) == (3, 1)
    assert (found.items, found.items_on_shared_images) == (6, 3)
    assert found.repeated_pairs == 1
    assert (found.patients, found.patients_shared, found.items_of_shared_patients) == (2, 1, 4)
    assert not found.is_clean
    assert "1 of 3 test images (3 of 6 items)" in str(found)


def test_leakage_names_every_pair_of_splits_in_order():
    cases = [case(name, name, split=name) for name in ("test", "validation", "train")]
    found = leakage(cases)
    assert [(leak.earlier, leak.later) for leak in found] == [
        ("train", "validation"),
        ("train", "test"),
        ("validation", "test"),
    ]
    assert all(leak.is_clean for leak in found)


def test_equal_pixels_under_two_names_leak_where_digests_are_given():
    cases = [case("a", "a", split="train"), case("b", "b", split="test")]
    assert leakage(cases)[0].is_clean
    assert leakage(cases, pixels={"a.jpg": "same", "b.jpg": "same"})[0].images_shared == 1


def test_arrays_are_known_by_their_content():
    zeros, ones = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    keys = [image_keys(Case("x", (array,)))[0] for array in (zeros, zeros.copy(), ones, zeros.reshape(4, 1))]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_same_patient_in_two_splits_of_ours_is_an_error():
    cases = [case("a", "a", split="train", patient="p"), case("b", "b", split="test", patient="p")]
    with pytest.raises(RequestError, match="'train' and 'test' leak.*1 of 1 known test patients"):
        require_clean(cases)


def test_same_image_in_two_splits_of_ours_is_an_error():
    with pytest.raises(RequestError, match="1 of 1 validation images"):
        require_clean([case("a", "x", split="train"), case("b", "x", split="validation")])


def test_official_cases_of_one_image_become_one_case_in_a_clean_split():
    official = [case("a", "a", split="train", texts=("1", "2")), case("a", "a", split="test", texts=("3",))]
    (merged,) = merge_cases(official)
    assert [q.text for q in merged.questions] == ["1", "2", "3"]
    (divided,) = split_by_image(official, 0, {"train": 1.0})
    assert (divided.split, len(divided.questions)) == ("train", 3)


def test_split_does_not_depend_on_order_or_place_and_does_on_the_seed():
    cases = [case(str(n), str(n)) for n in range(60)]
    splits = {c.id: c.split for c in split_by_image(cases, 1)}
    assert {c.id: c.split for c in split_by_image(cases[::-1], 1)} == splits
    moved = [dataclasses.replace(c, images=(Path("/elsewhere") / c.images[0],)) for c in cases]
    assert {c.id: c.split for c in split_by_image(moved, 1)} == splits
    assert {c.id: c.split for c in split_by_image(cases, 2)} != splits
    assert [sum(s == name for s in splits.values()) for name in ("train", "validation", "test")] == [48, 6, 6]


@pytest.mark.parametrize(
    ("seed", "fractions"), [(-1, {"train": 1.0}), (0, {"train": 0.5}), (0, {"train": 1.5, "test": -0.5}), (0, {})]
)
def test_impossible_splits_are_refused(seed, fractions):
    with pytest.raises(RequestError, match="add up to 1"):
        split_by_image([case("a", "a")], seed, fractions)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.lists(st.integers(0, 9), max_size=3),
            st.none() | st.integers(0, 4),
            st.sampled_from(["", "train", "test"]),
        ),
        max_size=25,
    ),
    st.integers(0, 5),
    st.sampled_from(
        [{"train": 0.8, "validation": 0.1, "test": 0.1}, {"train": 0.5, "test": 0.5}, {"a": 0.0, "b": 1.0}]
    ),
)
def test_no_patient_and_no_image_is_ever_in_two_splits(drawn, seed, fractions):
    cases = [
        case(str(name), *map(str, images), split=split, patient=None if patient is None else str(patient))
        for name, images, patient, split in drawn
    ]
    divided = split_by_image(cases, seed, fractions)
    assert sum(len(c.questions) for c in divided) == sum(len(c.questions) for c in cases)
    split_of: dict[str, str] = {}
    for c in divided:
        assert c.split in fractions
        assert fractions[c.split] > 0
        ties = [f"image {image}" for image in c.images] + ([f"patient {c.patient_id}"] if c.patient_id else [])
        for tie in (*ties, f"id {c.id}"):
            assert split_of.setdefault(tie, c.split) == c.split


def put(path, value):
    path.write_text(json.dumps(value))
    return path


def test_split_file_is_applied_by_case_id(tmp_path):
    cases = [case("1", "1", split="train"), case("2", "2", split="train")]
    divided = split_by_file(cases, put(tmp_path / "s.json", {"train": [1], "test": ["2"]}))
    assert [(c.id, c.split) for c in divided] == [("1", "train"), ("2", "test")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"train": ["1", "2"], "test": ["1"]}, "case 1 stands in 'train' and in 'test'"),
        ({"train": ["1"]}, "case 2 is in no list"),
        ({"train": ["1", "2", "9"]}, "no case is called 9"),
        ({"train": "12"}, "case 1 is in no list"),
    ],
)
def test_split_file_must_name_every_case_once(tmp_path, content, reason):
    with pytest.raises(RequestError, match=reason):
        split_by_file([case("1", "1"), case("2", "2")], put(tmp_path / "s.json", content))
