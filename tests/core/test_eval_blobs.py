"""The most conspicuous region: what is unusual, where it lies, and what it is worth on the phantom."""

from statistics import fmean

import numpy as np
import pytest

from lightbox import phantom
from lightbox.eval.blobs import largest_blob, usual_image
from lightbox.eval.boxes import LabelledBox, iou_matrix
from lightbox.paper import box_baselines
from lightbox.paper.samples import Sample, Split
from lightbox.records import Box, Finding


def noise(seed, height=40, width=60):
    return np.random.default_rng(seed).normal(100, 3, (height, width))


USUAL = usual_image(noise(seed) for seed in range(20))


@pytest.mark.parametrize("contrast", [60, -60])
def test_a_patch_is_where_it_is_whether_bright_or_dark(contrast):
    image = noise(99)
    image[10:20, 30:48] += contrast
    box = largest_blob(image, USUAL)
    assert iou_matrix([box], [Box(0.5, 0.25, 0.8, 0.5)])[0, 0] > 0.8


def test_gain_and_offset_of_an_image_are_not_conspicuous():
    image = noise(99)
    image[10:20, 30:48] += 60
    assert largest_blob(image, USUAL) == largest_blob(3 * image - 50, USUAL)


def test_where_nothing_differs_the_region_is_the_whole_image():
    flat = usual_image([np.full((8, 8), 5)])
    assert largest_blob(np.full((8, 8), 9), flat) == Box(0.0, 0.0, 1.0, 1.0)


def test_other_sizes_and_no_images_are_refused():
    with pytest.raises(ValueError, match="the usual one"):
        largest_blob(noise(0, 30), USUAL)
    with pytest.raises(ValueError, match="one size"):
        usual_image([noise(0), noise(0, 30)])
    with pytest.raises(ValueError, match="at least one"):
        usual_image([])


@pytest.fixture(scope="module")
def splits():
    """Phantom findings of 60 training and 60 other images."""
    made = []
    for seed in (0, 1):
        cases = phantom.draw_cases(phantom.seed_range("development", seed, 60), phantom.Knobs())
        samples = [
            Sample(f"{case.id}-{number}", finding, case.id, image)
            for image, case in enumerate(cases)
            for number, finding in enumerate(case.findings)
        ]
        made.append(Split("development", samples, [case.images[0] for case in cases], [case.id for case in cases]))
    return made


def test_each_baseline_answers_every_sample_and_they_differ_as_they_should(splits):
    train, asked = splits
    ious = {}
    for name, answer in box_baselines.BY_METHOD.items():
        boxes = answer(train, asked)
        pairs = zip(boxes, asked.samples, strict=True)
        ious[name] = fmean(iou_matrix([one.box], s.record.boxes).max() for (one,), s in pairs)
    assert ious["oracle"] == pytest.approx(1)
    assert 0.1 < ious["location_prior"] < 0.5
    assert 0.15 < ious["blob"] < 0.6  # one region an image, and up to three findings are asked for


def test_the_oracle_is_silent_where_a_finding_is_absent(splits):
    absent = Split("x", [Sample("a", Finding("mass", present=False), "a", 0)], [splits[0].images[0]], ["a"])
    assert box_baselines.oracle(splits[0], absent) == [[]]
    assert box_baselines.blob(splits[0], absent)[0][0].label == "mass"
    assert isinstance(box_baselines.location_prior(splits[0], absent)[0][0], LabelledBox)
