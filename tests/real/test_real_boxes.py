"""Readers of boxes on real files that nobody here wrote, found through LIGHTBOX_DATA_ROOT."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from k2sight.claims import PAPER
from k2sight.config import resolve
from k2sight.data import load_splits
from lightbox import knowledge
from lightbox.readers.catalog import ROOT_VARIABLE, read
from lightbox.readers.splits import split_by_image
from lightbox.readers.validate import validate

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]


@pytest.fixture(scope="module")
def data_root():
    return Path(os.environ[ROOT_VARIABLE])


def boxes_of(result):
    return {case.id: {f.name: sorted(f.boxes) for f in case.findings if f.present} for case in result.cases}


@pytest.mark.parametrize(
    ("name", "folder", "cases", "boxes", "present", "absent"),
    [
        ("bccd", "bccd", 100, 1299, 245, 55),
        ("blood_smear_csv", "blood_smear_csv", 40, 918, 78, 2),
        ("nih_cxr_mass_boxes", "nih_cxr_mass_boxes", 20, 129, 28, 12),
        ("covid_cxr_masks", "covid_cxr_masks", 22, 131, 137, 0),
        ("dsb2018_nuclei", "dsb2018_nuclei", 16, 599, 16, 0),
        ("chestx_det", "chestx_det_annotations", 553, 1734, 1172, 6017),
    ],
)
def test_a_set_is_read_whole(data_root, name, folder, cases, boxes, present, absent):
    found = validate(name, data_root / folder)
    assert found.is_ok
    notes = found.notes
    assert (found.cases, notes["boxes"], notes["findings_present"], notes["findings_absent"]) == (
        *(cases, boxes, present),
        absent,
    )
    assert found.images == (0 if name == "chestx_det" else cases)
    assert (notes["boxes_moved_to_the_edge"], notes["boxes_repeated"]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("bccd", "bccd"),
        ("blood_smear_csv", "blood_smear_csv"),
        ("nih_cxr_mass_boxes", "nih_cxr_mass_boxes"),
        ("covid_cxr_masks", "covid_cxr_masks"),
        ("chestx_det", "chestx_det_annotations"),
    ],
)
def test_every_class_of_a_set_is_covered_by_an_attribute_table(data_root, name, folder):
    """Of the COVID masks a part is here, so the table covers classes that this part lacks."""
    table = knowledge.findings()
    covered = {one.lower() for one in table.covers[name]}
    met = {finding.name.lower() for case in read(name, data_root / folder).cases for finding in case.findings}
    unmet = {"chest tube", "pleural effusion", "pneumothorax"} if name == "covid_cxr_masks" else set()
    assert covered - met == unmet
    assert met <= covered


def test_four_forms_of_the_nih_masses_agree_to_a_pixel(data_root):
    results = {form: read("nih_cxr_mass_boxes", form=form) for form in ("coco", "cvat", "csv", "yolo")}
    every = {form: boxes_of(result) for form, result in results.items()}
    for form, images in every.items():
        assert images.keys() == every["cvat"].keys(), form
        for image, findings in images.items():
            for name, boxes in findings.items():
                rest = list(every["cvat"][image][name])
                for box in boxes:  # rounding may change the order of two boxes
                    nearest = min(rest, key=lambda other: np.abs(np.subtract(other, box)).max())
                    assert np.abs(np.subtract(nearest, box)).max() * 1024 <= 1.01
                    rest.remove(nearest)
                assert rest == []


def test_split_of_the_nih_masses_goes_by_patient(data_root):
    cases = split_by_image(read("nih_cxr_mass_boxes").cases, 0)
    assert len({case.patient_id for case in cases}) == 18
    assert len({(case.patient_id, case.split) for case in cases}) == 18


def test_two_forms_of_the_blood_smears_agree(data_root):
    csv, kitti = (boxes_of(read("blood_smear_csv", form=form)) for form in ("csv", "kitti"))
    assert csv.keys() == kitti.keys()
    for image, findings in csv.items():
        for name, boxes in findings.items():
            assert np.allclose(boxes, kitti[image][name], atol=1e-6)


def test_classes_of_bccd_and_its_split(data_root):
    cases = read("bccd").cases
    classes = Counter(f.name for case in cases for f in case.findings for _ in f.boxes)
    assert classes == {"RBC": 1101, "WBC": 103, "Platelets": 95}
    assert {case.split for case in cases} == {"train", "validation"}


def test_the_real_number_of_k2sight_has_items_enough_for_a_verdict():
    train, scored = load_splits(resolve(["preset=real", "experiment=defined"]))
    assert train.samples
    assert sum(bool(sample.record.boxes) for sample in scored.samples) >= PAPER.claim("KR1").min_items
