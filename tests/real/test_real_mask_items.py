"""Real sets as items for mask models, found through LIGHTBOX_DATA_ROOT: who is held out, and what is asked for."""

import os

import numpy as np
import pytest

from lightbox.eval.masks import score_mask
from lightbox.paper import mask_rivals
from lightbox.paper.mask_items import ItemRules, divided_items, load_items
from lightbox.readers.all_sets import read_dataset
from lightbox.readers.catalog import ROOT_VARIABLE
from lightbox.readers.masks import mask_of

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]


def mean_dice(masks, items):
    return np.mean([score_mask(mask, item.mask)["dice"] for mask, item in zip(masks, items, strict=True)])


def check_splits(splits):
    """What holds for every set."""
    groups = [{item.patient_id or item.case_id for item in items} for items in (splits.train, splits.held)]
    assert not groups[0] & groups[1]
    items = (*splits.train, *splits.held)
    assert len({item.id for item in items}) == len(items)
    for item in items:
        assert item.mask.shape == item.image.shape[:2]
        assert item.name in item.question
    assert {item.name for item in splits.held} <= {item.name for item in splits.train if item.is_present}
    assert not splits.problems


def test_every_image_of_nuclei_is_held_out_once_and_its_mask_is_of_all_nuclei():
    cases = read_dataset("dsb2018_nuclei").cases
    splits = [divided_items(cases, seed=seed, parts=4, rules=ItemRules(longest_px=256)) for seed in range(4)]
    for own in splits:
        check_splits(own)
        assert (len(own.train), len(own.held)) == (12, 4)
    held = {item.case_id: item for own in splits for item in own.held}
    assert len(held) == len(cases) == 16
    for case in cases:
        item, mask = held[case.id], mask_of(case.findings[0])
        assert "nuclei" in item.question
        assert item.mask.shape == mask.shape or item.mask.mean() == pytest.approx(mask.mean(), abs=0.01)
        assert item.mask.shape != mask.shape or (item.mask == mask).all()
    assert any(item.image.shape[0] != item.image.shape[1] for item in held.values())


def test_hippocampi_are_held_out_by_patient_and_capped_and_some_slices_lack_them():
    rules = ItemRules(absent_pct=20, per_patient=10)
    splits = load_items("msd_hippocampus", seed=0, rules=rules)
    check_splits(splits)
    assert len({item.patient_id for item in splits.train}) + len({item.patient_id for item in splits.held}) == 24
    assert splits.counts["train_items"] + splits.counts["test_items"] == 240
    for name in ("anterior hippocampus", "posterior hippocampus"):
        own = [item for item in splits.train if item.name == name]
        absent = sum(not item.is_present for item in own)
        assert 0.15 < absent / len(own) <= 0.2
    # the class moves from slice to slice, but not from patient to patient: where it lies is half of the answer
    present = [item for item in splits.held if item.is_present]
    drawn = mask_rivals.mean_mask(splits.train, present)
    assert 0.2 < mean_dice(drawn, present) < 0.8


def test_regions_of_radiographs_have_words_and_lie_on_their_side():
    splits = load_items("covid_cxr_masks", seed=1, rules=ItemRules(per_case=6, longest_px=256))
    check_splits(splits)
    items = (*splits.train, *splits.held)
    assert {max(item.mask.shape) for item in items} == {256}
    assert splits.counts["cases"] == 22
    assert splits.counts["present_without_a_mask"] == 6
    assert max(sum(item.case_id == name for item in items) for name in {item.case_id for item in items}) == 6
    assert {"ground glass opacities", "right lung", "left lung"} <= {item.name for item in items}
    for name, is_left in (("right lung", True), ("left lung", False)):
        lungs = [item.mask for item in items if item.name == name]
        # the patient's right is on the left of the picture
        assert lungs
        assert all((np.nonzero(mask)[1].mean() / mask.shape[1] < 0.5) == is_left for mask in lungs)


def test_of_two_images_of_the_demonstration_the_class_that_both_show_is_asked_for():
    splits = load_items("sam_med2d_demo", seed=0, parts=2)
    check_splits(splits)
    assert splits.counts["cases_listed_twice"] == 2
    assert [item.name for item in splits.held] == ["aorta"]
    assert splits.counts["classes_not_trained"] + 1 + len(splits.train) == 19
    assert {item.image.shape[:2] for item in (*splits.train, *splits.held)} == {(512, 512), (181, 258)}


def test_the_grid_of_a_model_and_what_is_bright_bound_the_score_of_nuclei():
    splits = load_items("dsb2018_nuclei", seed=0, parts=4)
    train, held = splits.train, splits.held
    # of the files' own levels some images use a tenth
    assert min(np.percentile(item.image, 99.5) for item in (*train, *held)) > 250
    scores = {name: mean_dice(draw(train, held), held) for name, draw in mask_rivals.BY_METHOD.items()}
    assert scores["oracle"] > 0.9 > scores["bright"] > scores["bright_blob"]
    assert scores["bright"] > scores["mean_mask"] + 0.3
