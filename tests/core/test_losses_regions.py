"""A contrast between a phrase and regions: which patches a box touches, what else is compared, and the sum by hand."""

import math

import pytest
import torch

from lightbox.losses.regions import (
    MOST_SHARED,
    N_OTHERS,
    TEMPERATURE,
    other_regions,
    patches_in,
    region_phrase_contrast,
)


@pytest.mark.parametrize(
    ("box", "touched"),
    [
        ((0.0, 0.0, 1.0, 1.0), range(16)),
        ((0.25, 0.25, 0.5, 0.5), [5]),  # edges on edges of a patch touch no neighbour
        ((0.24, 0.25, 0.26, 0.3), [4, 5]),
        ((0.9, 0.0, 1.0, 0.6), [3, 7, 11]),
    ],
)
def test_a_box_touches_the_patches_it_lies_in(box, touched):
    patches = patches_in(torch.tensor([box]), 4)[0]
    assert patches.nonzero()[:, 0].tolist() == list(touched)


def test_other_regions_have_the_shape_and_lie_elsewhere():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0.0, 0.25, 0.3], [0.4, 0.5, 0.9, 0.8], [0.1, 0.1, 0.2, 0.9]])
    region = patches_in(boxes, 8)
    others = other_regions(region)
    assert others.shape == (3, N_OTHERS, 64)
    for own, its in zip(region, others, strict=True):
        for other in its:
            assert other.sum() == own.sum()
            assert (other & own).sum() / (other | own).sum() < MOST_SHARED
        assert len({tuple(other.tolist()) for other in its}) == N_OTHERS  # drawn without repeats where there is room


def test_a_large_region_is_never_its_own_wrong_answer():
    torch.manual_seed(0)
    region = patches_in(torch.tensor([[0.0, 0.0, 0.75, 0.75]]), 8).expand(50, -1)
    others = other_regions(region)
    assert not (others == region[:, None]).all(dim=2).any()
    shared = (others & region[:, None]).sum(dim=2) / (others | region[:, None]).sum(dim=2)
    assert shared.max() < 0.75  # of eight other places those that share least


def test_a_region_that_fills_its_image_has_no_other_place():
    region = torch.ones(1, 16, dtype=torch.bool)
    assert other_regions(region).all()


def rows(seed=0, b=2, side=2, n_words=3, d=8):
    torch.manual_seed(seed)
    places = torch.arange(side * side).repeat(b, 1) + 1
    words = torch.zeros(b, side * side + 1 + n_words + 1, dtype=torch.bool)
    words[:, side * side + 1 : -1] = True
    return torch.randn(b, words.shape[1], d), places, words


def test_the_sum_is_that_of_the_formula_written_out():
    states, places, words = rows()
    region = torch.tensor([[True, False, False, False], [False, False, True, True]])
    others = other_regions(region, 2)
    expected = 0.0
    for row in range(2):
        real = [*places[row].tolist(), *words[row].nonzero()[:, 0].tolist()]
        tokens = states[row, real]
        phrase = states[row][words[row]].mean(dim=0)
        scores = []
        for mask in (region[row], *others[row]):
            own = states[row, places[row]][mask].mean(dim=0)
            weights = [math.exp(float(phrase @ h) / 8**0.5) * math.exp(float(own @ h) / 8**0.5) for h in tokens]
            context = sum(w * h for w, h in zip(weights, tokens, strict=True)) / sum(weights)
            a, b = phrase + context, own + context
            scores.append(float(a @ b / (a.norm() * b.norm())) / TEMPERATURE)
        expected += math.log(sum(math.exp(s) for s in scores)) - scores[0]
    total = region_phrase_contrast(states, places, words, region, others)
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_what_is_padding_is_not_looked_at():
    states, places, words = rows()
    region = torch.tensor([[True, False, False, False]] * 2)
    others = other_regions(region, 2)
    changed = states.clone()
    changed[:, 0] += 100.0  # the mean of all patches, in front
    changed[:, -1] += 100.0  # padding, behind
    both = [region_phrase_contrast(each, places, words, region, others) for each in (states, changed)]
    torch.testing.assert_close(*both)


def test_the_gradient_draws_phrase_and_region_together():
    states, places, words = rows()
    region = torch.tensor([[True, False, False, False]] * 2)
    others = other_regions(region, 3)
    states.requires_grad_()
    losses = []
    for _ in range(20):
        total = region_phrase_contrast(states, places, words, region, others)
        losses.append(float(total.detach()))
        (gradient,) = torch.autograd.grad(total, states)
        states = (states - 0.5 * gradient).detach().requires_grad_()
    assert losses[-1] < 0.2 * losses[0]
