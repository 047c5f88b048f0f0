"""SLAKE: questions, boxes and masks of one golden image in every layout, and its malformed rows."""

import json

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.records import Box, Question

ROW = {
    "img_id": 8,
    "img_name": "xmlab8/source.jpg",
    "question": "Does the picture contain liver?",
    "answer": "Yes",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "MRI",
    "answer_type": "CLOSED",
    "base_type": "vqa",
    "content_type": "Organ",
    "triple": ["vhead", "_", "_"],
    "qid": 11,
}
KNOWLEDGE = {
    **ROW,
    "qid": 12,
    "question": "How to treat it?",
    "answer": "Medical therapy",
    "base_type": "kvqa",
    "content_type": "KG",
    "triple": ["Pneumonia", "Treatment", "_"],
    "answer_type": "OPEN",
}
CHINESE = {**ROW, "qid": 13, "question": "有肝吗", "answer": "有", "q_lang": "zh"}


@pytest.fixture
def root(tmp_path):
    """Image 8 of 20 x 10 pixels: a liver box, 4 x 2 at (2, 3), that a mask fills; a kidney box, 5 x 5 at (10, 1)."""
    folder = tmp_path / "imgs" / "xmlab8"
    folder.mkdir(parents=True)
    Image.new("L", (20, 10), 90).save(folder / "source.jpg")
    (folder / "detection.json").write_text('[{"Liver": [2.0, 3.0, 4.0, 2.0]}, {"Right Kidney": [10, 1, 5, 5]}]')
    mask = np.zeros((10, 20, 4), np.uint8)
    mask[..., 3] = 255
    mask[3:5, 2:6, :3] = 70  # fills the liver box
    mask[8, 0, :3] = 185  # fills no box
    Image.fromarray(mask).save(folder / "mask.png")
    (tmp_path / "train.json").write_text(json.dumps([ROW, CHINESE, KNOWLEDGE]))
    return tmp_path


def test_official_layout_golden(root):
    result = read("slake", root)
    (case,) = result.cases
    assert (case.id, case.split, case.modality, case.body_part) == ("8", "train", "MRI", "Abdomen")
    assert case.images == (root / "imgs" / "xmlab8" / "source.jpg",)
    assert case.questions == (
        Question("11", "Does the picture contain liver?", "yes", ("yes", "no"), 0, kind="Organ"),
        Question("12", "How to treat it?", "Medical therapy", facts=("Pneumonia | Treatment | _",), kind="KG"),
    )
    assert [(f.name, f.boxes, f.mask) for f in case.findings] == [
        ("Liver", (Box(0.1, 0.3, 0.3, 0.5),), None),
        ("Right Kidney", (Box(0.5, 0.1, 0.75, 0.6),), None),
    ]
    assert result.counts["rows_of_other_languages"] == 1
    assert result.counts["boxes"] == 2
    assert result.problems == ()


def test_mask_regions_take_the_name_of_the_box_they_fill(root):
    (case,) = read("slake", root, use_masks=True).cases
    liver, kidney, region = case.findings
    assert liver.mask.sum() == 8
    assert liver.mask[3:5, 2:6].all()
    assert kidney.mask is None
    assert region.name == "unnamed region 185"
    assert region.boxes == (Box(0.0, 0.8, 0.05, 0.9),)
    assert region.mask.sum() == 1


def test_mask_of_another_size_than_its_image_is_a_problem(root):
    Image.new("L", (5, 5), 70).save(root / "imgs" / "xmlab8" / "mask.png")
    result = read("slake", root, use_masks=True)
    assert [(p.row, p.field) for p in result.problems] == [("8", "mask.png")]
    assert [f.mask for f in result.cases[0].findings] == [None, None]


@pytest.mark.parametrize(("language", "ids"), [("en", ["11", "12"]), ("zh", ["13"]), ("all", ["11", "13", "12"])])
def test_language_filter(root, language, ids):
    (case,) = read("slake", root, language=language).cases
    assert [question.id for question in case.questions] == ids


def test_unknown_language_is_refused(root):
    with pytest.raises(RequestError, match="language='fr'.*en, zh, all"):
        read("slake", root, language="fr")


def test_image_folders_alone_are_read_without_split_or_qid(root):
    (root / "train.json").unlink()
    rows = [{k: v for k, v in row.items() if k not in ("qid", "content_type")} for row in (ROW, KNOWLEDGE)]
    (root / "imgs" / "xmlab8" / "question.json").write_text(json.dumps(rows))
    (case,) = read("slake", root).cases
    assert case.split == ""
    assert [(q.id, q.kind) for q in case.questions] == [("8-1", "vqa"), ("8-2", "kvqa")]
    with pytest.raises(RequestError, match=r"There is no test\.json"):
        read("slake", root, "test")


@pytest.mark.parametrize("name", ["validate.json", "validation.json"])
def test_question_file_alone_is_read_as_text(tmp_path, name):
    (tmp_path / name).write_text(json.dumps([ROW]))
    (case,) = read("slake", tmp_path, "validation").cases
    assert case.images == ()
    assert (case.split, len(case.questions)) == ("validation", 1)


@pytest.mark.parametrize(
    ("detection", "row", "field"),
    [
        ('[{"Liver": [2, 3, 4]}]', "1", "Liver"),
        ('[{"Liver": "2 3 4 2"}]', "1", "Liver"),
        ('[{"Liver": [2, 3, true, 2]}]', "1", "Liver"),
        ('[{"Liver": [2, 3, NaN, 2]}]', "1", "Liver"),
        ('[{"Liver": [2, 3, 1e999, 2]}]', "1", "Liver"),
        ('[{"Liver": [2, 3, 0, 2]}]', "1", "Liver"),
        ('[{"Liver": [18, 3, 4, 2]}]', "1", "Liver"),
        ('[{"Liver": [-1, 3, 4, 2]}]', "1", "Liver"),
        ("[3]", "1", "row"),
        ("[{}]", "1", "row"),
        ('{"Liver": [2, 3, 4, 2]}', "all", "row"),
        ("[{", "all", "row"),
    ],
)
def test_malformed_boxes_are_problems_and_questions_stay(root, detection, row, field):
    (root / "imgs" / "xmlab8" / "detection.json").write_text(detection)
    result = read("slake", root)
    assert [(p.row, p.field) for p in result.problems] == [(row, field)]
    assert result.cases[0].findings == ()
    assert len(result.cases[0].questions) == 2


def test_boxes_need_an_image_to_measure_by(root):
    for name in ("source.jpg", "mask.png"):
        (root / "imgs" / "xmlab8" / name).unlink()
    result = read("slake", root)
    assert {p.field for p in result.problems} == {"source.jpg"}


def test_mask_gives_the_size_where_the_image_is_absent(root):
    (root / "imgs" / "xmlab8" / "source.jpg").unlink()
    (case,) = read("slake", root).cases
    assert case.findings[0].boxes == (Box(0.1, 0.3, 0.3, 0.5),)


def test_one_case_id_with_two_images_is_a_malformed_row(root):
    (root / "train.json").write_text(json.dumps([ROW, {**ROW, "qid": 99, "img_name": "xmlab9/source.jpg"}]))
    result = read("slake", root)
    assert [(p.row, p.field) for p in result.problems] == [("2", "image")]
    assert "case 8 shows" in result.problems[0].reason
