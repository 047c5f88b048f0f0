"""The small specialist learns a class from its images, repeats itself bit by bit, and knows which class is asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightbox.errors import RequestError, WorkError
from lightbox.eval.masks import score_mask
from lightbox.paper.mask_items import MaskItem
from lightbox.paper.mask_specialist import SpecialistConfig, train_specialist

CFG = SpecialistConfig(n_steps=60, batch_size=8, lr=1e-2, seed=0, side_px=16, channels=(8, 16), class_width=8)


def drawn_items(n, *, seed):
    """Wide images with a bright and a dark square anywhere; both are asked for."""
    rng = np.random.default_rng(seed)
    items = []
    for k in range(n):
        image = rng.integers(110, 146, (20, 30)).astype(np.uint8)
        for name, left, grey in (("bright", 0, 250), ("dark", 15, 5)):
            top, start = rng.integers(0, 12), left + rng.integers(0, 7)
            mask = np.zeros(image.shape, dtype=bool)
            mask[top : top + 8, start : start + 8] = True
            image[mask] = grey
            items.append(MaskItem(f"{seed}-{k}-{name}", image, name, "", mask, f"{seed}-{k}"))
    return items


def mean_dice(masks, items):
    return np.mean([score_mask(mask, item.mask)["dice"] for mask, item in zip(masks, items, strict=True)])


@pytest.fixture(scope="module")
def trained():
    return train_specialist(drawn_items(12, seed=1), CFG)


def test_it_draws_the_class_that_is_asked_for_on_images_that_it_has_not_seen(trained):
    asked = drawn_items(6, seed=2)
    masks = trained.masks(asked)
    assert {mask.shape for mask in masks} == {(20, 30)}
    assert mean_dice(masks, asked) > 0.8
    swapped = [asked[place + 1 - 2 * (place % 2)] for place in range(len(asked))]
    assert mean_dice(masks, swapped) < 0.1
    assert len(trained.losses) == CFG.n_steps
    assert trained.losses[-1] < trained.losses[0] / 2


def test_the_same_seed_gives_the_same_bits_and_moves_no_generator_outside(trained):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_specialist(drawn_items(12, seed=1), CFG)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.losses == trained.losses
    for own, other in zip(again.net.parameters(), trained.net.parameters(), strict=True):
        assert torch.equal(own, other)


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(trained):
    asked = drawn_items(3, seed=4)
    alone = trained.logits(asked[3:4])[0]
    np.testing.assert_allclose(trained.logits(asked)[3], alone, atol=1e-4)


def test_a_class_that_was_never_met_is_drawn_by_the_mean_of_all(trained):
    bright, dark = drawn_items(1, seed=6)
    other = replace(bright, name="liver")
    logits = trained.logits([bright, dark, other])
    # logits are linear in the embedding, so their mean is the logit of the mean
    np.testing.assert_allclose(logits[2], (logits[0] + logits[1]) / 2, atol=1e-3)


def test_another_seed_gives_other_weights():
    cfg = SpecialistConfig(n_steps=1, batch_size=2, lr=1e-3, seed=1, side_px=16, channels=(4, 8), class_width=4)
    items = drawn_items(2, seed=1)
    losses = {
        train_specialist(items, cfg).losses,
        train_specialist(items, SpecialistConfig(**vars(cfg) | {"seed": 2})).losses,
    }
    assert len(losses) == 2


def test_items_of_absent_classes_alone_teach_to_draw_nothing():
    items = [
        MaskItem(f"{n}", i.image, i.name, "", np.zeros_like(i.mask), i.case_id)
        for n, i in enumerate(drawn_items(4, seed=3))
    ]
    masks = train_specialist(items, CFG).masks(items)
    assert not any(mask.any() for mask in masks)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(RequestError, match="No training item"):
        train_specialist([], CFG)
    with pytest.raises(RequestError, match="side_px=18 with 3 channels"):
        SpecialistConfig(n_steps=1, batch_size=1, lr=1e-3, seed=0, side_px=18)
    with pytest.raises(RequestError, match="n_steps"):
        SpecialistConfig(n_steps=0, batch_size=1, lr=1e-3, seed=0)
    with pytest.raises(WorkError, match="The specialist's loss is (nan|inf) in step 2"):
        train_specialist(drawn_items(2, seed=1), replace(CFG, lr=1e30))
