"""What is asked, looked at with its masks: tags, targets, mixing, and images that are swapped within a modality."""

from dataclasses import replace

import numpy as np
import pytest

from lightbox.paper.conditions import GREY
from lightbox.paper.drawn_regions import CAPTION, MASK, OTHER, OWN, PRESENCE, REGION, WHOLE, load_asked, shuffled_rows
from lightbox.paper.pixel_items import HERE, SEG, check_item
from lightbox.paper.pixel_prompts import mask_of
from lightbox.phantom.modalities import TRAINED
from lightbox.phantom.region_prompts import PROMPTS
from medplib.config import resolve
from medplib.data import item_of, learnt_by, load_splits, target_of


@pytest.fixture(scope="module")
def cfg():
    return resolve(["preset=smoke", "experiment=vl", "data.n_train=30", "data.n_test=20"])


@pytest.fixture(scope="module")
def splits(cfg):
    return load_splits(cfg)


def of(split, task):
    return [sample for sample in split.samples if sample.record.task == task]


def test_every_task_and_modality_is_asked_about(splits):
    for split in splits:
        assert {sample.record.modality for sample in split.samples} == set(TRAINED)
        assert len(split.ids) == len(set(split.ids))
    assert {sample.record.task for sample in splits[0].samples} == {REGION, PRESENCE, MASK, CAPTION}
    assert {sample.record.task for sample in splits[1].samples} == {REGION, PRESENCE, MASK}
    assert set(splits[0].case_ids).isdisjoint(splits[1].case_ids)


def test_items_are_what_a_model_takes(splits):
    for sample in splits[0].samples:
        item = item_of(sample, splits[0], is_answered=True)
        check_item(item)
        assert item.question.count(HERE) == (sample.record.task == REGION)
        assert item.image is splits[0].images[sample.image]
    example = item_of(of(splits[0], REGION)[0], splits[0])
    assert f"the region {HERE}" in example.question
    assert example.answer is None


def test_an_answer_repeats_the_class_and_asks_for_a_mask_where_it_is_there(splits):
    for sample in of(splits[0], MASK):
        is_there = bool(sample.record.mask.any())
        text = target_of(sample.record)
        assert text == (f"the {sample.record.name} {SEG} ." if is_there else f"the {sample.record.name} is absent .")
        assert (sample.record.answer == "present") == is_there
        assert sample.record.name in sample.record.text
    said = {target_of(sample.record).split(" is ")[1] for sample in of(splits[0], PRESENCE)}
    assert said == {"present .", "absent ."}


def test_every_kind_of_prompt_means_the_region_and_another_has_another_answer(splits):
    scored = splits[1]
    for sample in of(scored, REGION):
        asked, hw = sample.record, np.asarray(scored.images[sample.image]).shape[:2]
        assert {OWN, OTHER, WHOLE, *PROMPTS} == asked.regions.keys()
        assert mask_of(asked.regions[WHOLE], hw).all()
        for kind in PROMPTS:
            assert (mask_of(asked.regions[kind], hw) & asked.mask).any()
        assert item_of(sample, scored, region=OTHER).regions[0] is asked.regions[OTHER]


def test_the_same_question_whatever_is_drawn_beside_it():
    settings = {"seed": 3, "modalities": ("ct",), "tasks": {REGION: 6}}
    plain, full = (load_asked("validation", with_prompts=own, **settings) for own in (False, True))
    assert plain.ids == full.ids
    for one, other in zip(plain.samples, full.samples, strict=True):
        assert (one.record.text, one.record.answer) == (other.record.text, other.record.answer)
        assert one.record.regions.keys() == {OWN, WHOLE}


@pytest.mark.parametrize(
    ("method", "tasks"),
    [("align", {CAPTION}), ("vl", {REGION, PRESENCE}), ("grounding", {MASK})],
)
def test_a_stage_learns_its_tasks(cfg, splits, method, tasks):
    own = replace(cfg, objective=replace(cfg.objective, method=method))
    assert {sample.record.task for sample in learnt_by(own, splits[0])} == tasks


@pytest.mark.parametrize("share", [25.0, 50.0])
def test_stage_4_mixes_by_the_declared_ratio(cfg, splits, share):
    own = replace(cfg, objective=replace(cfg.objective, method="mixture"), data=replace(cfg.data, mask_pct=share))
    learnt = learnt_by(own, splits[0])
    masks = sum(sample.record.task == MASK for sample in learnt)
    assert masks / len(learnt) == pytest.approx(share / 100, abs=0.02)
    assert len({sample.id for sample in learnt}) == len(learnt)


def test_swapped_images_are_of_other_cases_of_the_modality_and_the_blank_one_is_grey(splits):
    scored = splits[1]
    modality_of = {sample.image: sample.record.modality for sample in scored.samples}
    for sample, row in zip(scored.samples, shuffled_rows(scored, seed=0), strict=True):
        assert row != sample.image
        assert modality_of[row] == sample.record.modality
        assert np.asarray(scored.images[row]).shape == np.asarray(scored.images[sample.image]).shape
    blank = item_of(scored.samples[0], scored, image=len(scored.images)).image
    assert (blank == GREY).all()
