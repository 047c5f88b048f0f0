"""Requests in modalities that nothing was trained on: which classes, which pictures, and another word for the same."""

import numpy as np
import pytest

from lightbox.paper.mask_items import mask_requests
from lightbox.paper.unseen_masks import OTHER_WORD, UNSEEN, unseen_splits
from lightbox.phantom.modalities import HELD_OUT, MODALITIES, TRAINED, shared_classes
from lightbox.phantom.splits import seed_range


@pytest.fixture(scope="module")
def splits():
    return unseen_splits("validation", seed=0, n=40)


def test_every_held_out_modality_is_asked_about_in_words_of_the_trained_ones(splits):
    words = {name for modality in TRAINED for name in MODALITIES[modality].classes}
    records = [sample.record for sample in splits[UNSEEN].samples]
    assert {record.modality for record in records} == set(HELD_OUT)
    assert all(record.kind == record.modality and record.name in words for record in records)
    assert {record.answer for record in records} == {"present", "absent"}


def test_choices_are_made_on_development_pictures_and_never_on_those_of_the_test(splits):
    development = seed_range("development", 0, 10)
    assert {int(case.split("-")[-1]) for case in splits[UNSEEN].case_ids} == set(development)
    test = unseen_splits("test", seed=0, n=4)
    assert {int(case.split("-")[-1]) for case in test[UNSEEN].case_ids} <= set(seed_range("test", 0, 1))


def test_another_word_is_of_the_modality_and_leaves_picture_and_mask(splits):
    own = {sample.id: sample for sample in splits[UNSEEN].samples}
    renamed = splits[OTHER_WORD].samples
    assert [s.id for s in renamed] == [s.id for s in own.values() if s.record.answer == "present"] != []
    for sample in renamed:
        before, after = own[sample.id].record, sample.record
        assert after.name in shared_classes(after.modality)
        assert after.name != before.name
        assert after.text == before.text.replace(before.name, after.name)
        assert sample.image == own[sample.id].image
        np.testing.assert_array_equal(after.mask, before.mask)


def test_both_conditions_are_items_to_draw(splits):
    for split in splits.values():
        assert [item.name for _, item in mask_requests(split)] == [sample.record.name for sample in split.samples]
