"""Arms that draw without words: boxes of objects, what the shipped segmenter draws for them, files that are left."""

import numpy as np
import pytest

from lightbox.backbones.segmenter import load_segmenter
from lightbox.eval.masks import score_mask
from lightbox.paper.drawn_regions import MASK, load_asked
from lightbox.paper.mask_arms import boxed_logits, object_boxes
from lightbox.paper.mask_items import mask_requests


def test_each_object_has_its_box():
    mask = np.zeros((10, 20), dtype=bool)
    assert object_boxes(mask) == []
    mask[2:4, 5:10] = mask[4, 10] = True  # they meet at a corner
    mask[9, 19] = True
    assert object_boxes(mask) == [(0.25, 0.2, 0.55, 0.5), (0.95, 0.9, 1.0, 1.0)]


@pytest.mark.parametrize("modality", ["ct", "pet"])
def test_the_segmenter_draws_what_lies_in_the_true_boxes_of_a_picture_of_any_aspect(modality):
    split = load_asked("validation", seed=0, modalities=(modality,), tasks={MASK: 12})
    items = [item for _, item in mask_requests(split)]
    drawn = boxed_logits(load_segmenter("tiny/sam"), items)
    assert [logits.shape for logits in drawn] == [item.mask.shape for item in items]
    scores = [score_mask(logits > 0, item.mask) for logits, item in zip(drawn, items, strict=True)]
    assert np.mean([own["dice_present"] for own in scores if own["dice_present"] is not None]) > 0.6
    assert all(own["false_mask"] == 0 for own in scores if own["dice_present"] is None)
