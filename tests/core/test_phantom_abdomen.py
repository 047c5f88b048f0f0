"""The abdominal stack: the same for a seed in any batch and at any size, lesions inside organs, slices that go on."""

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.phantom.abdomen import LESIONS, ORGANS, StackKnobs, draw_stacks
from lightbox.phantom.splits import seed_range

KNOBS = StackKnobs(image_px=64, n_slices=12)


@pytest.fixture(scope="module")
def stacks():
    return draw_stacks(seed_range("development", 0, 200), KNOBS)


def test_a_stack_depends_on_its_seed_alone(stacks):
    again = draw_stacks(seed_range("development", 0, 200)[7:8], KNOBS)[0]
    assert (again.slices == stacks[7].slices).all()
    assert again.questions == stacks[7].questions
    assert (stacks[7].slices != stacks[8].slices).any()


def test_every_lesion_shows_and_its_boxes_are_those_of_its_mask(stacks):
    lesions = [(stack, lesion) for stack in stacks for lesion in stack.lesions]
    assert {lesion.name for _, lesion in lesions} == set(LESIONS)
    assert {lesion.organ for _, lesion in lesions} == set(ORGANS)
    for stack, lesion in lesions:
        assert lesion.mask.shape == stack.slices.shape == (12, 64, 64)
        assert sorted(lesion.boxes) == np.flatnonzero(lesion.mask.any(axis=(1, 2))).tolist()
        assert lesion.largest_slice in lesion.boxes
        assert lesion.boxes == {k: box for k, box in lesion.boxes.items() if 0 <= box.x0 < box.x1 <= 1}
        assert np.ptp(sorted(lesion.boxes)) == len(lesion.boxes) - 1  # without gaps


def test_lesions_are_darker_or_brighter_than_their_organ(stacks):
    wanted = {"cyst": -52, "mass": 42, "calcification": 100}
    seen: dict[str, list[float]] = {name: [] for name in LESIONS}
    quiet = draw_stacks(seed_range("development", 0, 200), StackKnobs(noise_pct=0))
    for stack in quiet:
        for lesion in stack.lesions:
            place = lesion.largest_slice
            inside = stack.slices[place][lesion.mask[place]].astype(float).mean()
            ring = _grown(lesion.mask[place]) & ~lesion.mask[place]
            seen[lesion.name].append(inside - np.median(stack.slices[place][ring]))
    for name, differences in seen.items():
        assert abs(np.median(differences) - wanted[name]) < 15, name


def _grown(mask):
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def test_neighbours_are_more_alike_than_slices_apart():
    stacks = draw_stacks(seed_range("development", 0, 30), StackKnobs(noise_pct=0))
    near = np.mean([np.abs(np.diff(stack.slices.astype(int), axis=0)).mean() for stack in stacks])
    far = np.mean([np.abs(stack.slices[:6].astype(int) - stack.slices[6:]).mean() for stack in stacks])
    assert near < far / 2


def test_presence_is_answered_yes_as_often_as_no_and_counts_are_true(stacks):
    for stack in stacks:
        presence, count = stack.questions
        name = presence.text.removeprefix("is there a ").removesuffix(" ?")
        assert (presence.answer == "yes") == (name in {lesion.name for lesion in stack.lesions})
        assert count.answer == ("none", "one", "two", "three")[len(stack.lesions)]
    there = np.mean([stack.questions[0].answer == "yes" for stack in stacks if 0 < len(stack.lesions) < 3])
    assert abs(there - 0.5) < 0.12


def test_another_size_or_number_of_slices_shows_the_same_lesions(stacks):
    finer = draw_stacks(seed_range("development", 0, 20), StackKnobs(image_px=128, n_slices=12))
    for fine, coarse in zip(finer, stacks, strict=False):
        assert [(a.name, a.organ, a.size) for a in fine.lesions] == [(a.name, a.organ, a.size) for a in coarse.lesions]
        for a, b in zip(fine.lesions, coarse.lesions, strict=True):
            assert a.mask.mean() == pytest.approx(b.mask.mean(), rel=0.6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"n_slices": 1}, "n_slices=1"), ({"image_px": 60}, "image_px=60"), ({"lesion_scale_pct": 20}, "lesion_scale")],
)
def test_other_knobs_are_refused(knobs, message):
    with pytest.raises(RequestError, match=message):
        StackKnobs(**knobs)
