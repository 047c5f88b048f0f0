"""Where images are noised and how: the paper's formula, and masks of each kind."""

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.paper.moved_masks import degraded, elsewhere, mask_iou
from mmedpo.noise import masks_of, noised, signal_share


@pytest.fixture
def disc():
    rows, columns = np.mgrid[:64, :64]
    return (rows - 20) ** 2 + (columns - 40) ** 2 <= 25


@pytest.mark.parametrize(
    ("step", "signal", "spread"),
    [(100, 0.998, 0.058), (300, 0.981, 0.194), (500, 0.863, 0.505), (900, 0.365, 0.931), (999, 0.285, 0.959)],
)
def test_the_schedule_is_the_one_of_the_released_training_code(step, signal, spread):
    share = signal_share(step)
    assert share**0.5 == pytest.approx(signal, abs=6e-4)
    assert (1 - share) ** 0.5 == pytest.approx(spread, abs=6e-4)


def test_noise_follows_the_formula_inside_the_mask_and_changes_nothing_outside():
    images = np.full((1, 200, 200), 160, np.uint8)
    mask = np.zeros((1, 200, 200), bool)
    mask[:, 50:150] = True
    copy = noised(images, mask, 300, [3])
    assert (copy[~mask] == 160).all()
    x = copy[mask] / 127.5 - 1
    assert x.mean() == pytest.approx(0.981 * (160 / 127.5 - 1), abs=0.005)
    assert x.std() == pytest.approx(0.194, abs=0.005)


def test_noise_of_a_pair_depends_on_its_seed_alone(disc):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64)).astype(np.uint8)
    masks = np.stack([disc] * 3)
    together = noised(images, masks, 500, [1, 2, 3])
    assert (noised(images[1:2], masks[:1], 500, [2])[0] == together[1]).all()
    assert (noised(images[1:2], masks[:1], 500, [4])[0] != together[1]).any()


def test_masks_have_the_area_and_overlap_that_they_are_for(disc):
    seeds, lesions = range(40), np.stack([disc] * 40)
    random = masks_of("random", lesions, seeds)
    assert (random.sum(axis=(1, 2)) == disc.sum()).all()
    assert max(mask_iou(mask, disc) for mask in random) < 0.1
    moved = masks_of("degraded", lesions, seeds)
    overlaps = np.array([mask_iou(mask, disc) for mask in moved])
    assert (overlaps >= 0.3).all()
    assert np.mean(overlaps <= 0.7) > 0.9
    assert masks_of("full", lesions, seeds).all()
    assert masks_of("oracle", lesions, seeds) is lesions


def test_the_official_threshold_keeps_nearly_all_of_a_peaked_map(disc):
    maps = np.where(disc, 0.9, 0.02)[None]
    assert (masks_of("tower", disc[None], [0], maps) == disc).all()
    assert masks_of("mean_std", disc[None], [0], maps).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"masks": np.zeros((1, 64, 64), bool)}, "has no pixel"),
        ({"masks": np.ones((1, 32, 32), bool)}, "of its size"),
        ({"seeds": [1, 2]}, "2 seeds"),
        ({"step": -1}, "Noise step -1"),
        ({"step": 1000}, "Noise step 1000"),
    ],
)
def test_what_cannot_be_noised_is_refused(change, named):
    asked = {"images": np.zeros((1, 64, 64), np.uint8), "masks": np.ones((1, 64, 64), bool), "step": 5, "seeds": [0]}
    with pytest.raises(RequestError, match=named):
        noised(**asked | change)


@pytest.mark.parametrize("kind", ["tower", "mean_std", "lung"])
def test_masks_without_what_they_need_are_refused(kind, disc):
    with pytest.raises(RequestError, match=kind):
        masks_of(kind, disc[None], [0])


def test_a_moved_mask_is_a_pure_function_of_its_generator(disc):
    for make in (degraded, elsewhere):
        first, again = (make(disc, np.random.default_rng(5)) for _ in range(2))
        assert (first == again).all()
        assert (make(disc, np.random.default_rng(6)) != first).any()
