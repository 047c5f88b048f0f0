"""Properties of the weighted preference loss."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from mmedpo.objective import answer_loss, pair_loss

NAMES = ("dpo", "robust", "ipo", "kto", "simpo", "orpo")


def batch(b=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 9, (2, b), generator=generator)
    policy = -torch.rand(2, b, generator=generator) * tokens
    reference = -torch.rand(2, b, generator=generator) * tokens
    weights = 0.75 + torch.rand(b, generator=generator) / 2
    return policy, tokens, reference, weights


def test_at_the_start_the_loss_is_the_mean_weight_times_log_2():
    policy, tokens, _, weights = batch()
    loss, pairs, means = pair_loss(policy, tokens, policy, weights)
    assert float(loss / pairs) == pytest.approx(float(weights.mean()) * math.log(2), rel=1e-6)
    assert float(means["margin"]) == 0


def test_the_loss_is_the_formula_of_the_paper():
    policy, tokens, reference, weights = batch()
    loss, pairs, _ = pair_loss(policy, tokens, reference, weights, beta=0.3)
    total = 0.0
    for k, weight in enumerate(weights.tolist()):
        gains = [float(policy[side, k] - reference[side, k]) for side in (0, 1)]
        total += weight * math.log(1 + math.exp(-0.3 * (gains[0] - gains[1])))
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert int(pairs) == 5


def test_an_identical_pair_has_no_gradient():
    shared = torch.randn(5, requires_grad=True)
    _, tokens, reference, weights = batch()
    loss, _, _ = pair_loss(torch.stack([shared, shared]), tokens[:1].repeat(2, 1), reference[:1].repeat(2, 1), weights)
    loss.backward()
    assert float(shared.grad.abs().max()) < 1e-7


def test_swapping_the_answers_flips_the_margin():
    policy, tokens, reference, weights = batch()
    one = pair_loss(policy, tokens, reference, weights)[2]["margin"]
    other = pair_loss(policy.flip(0), tokens.flip(0), reference.flip(0), weights)[2]["margin"]
    assert float(one) == pytest.approx(-float(other))
    assert float(one) != 0


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_without_tokens_gives_nothing_and_no_nan(name):
    policy, tokens, reference, weights = batch(b=3)
    tokens[1, 1] = 0
    policy.requires_grad_()
    loss, pairs, _ = pair_loss(policy, tokens, reference, weights, name)
    loss.backward()
    assert int(pairs) == 2
    assert torch.isfinite(loss)
    assert policy.grad[:, 1].tolist() == [0, 0]
    assert (policy.grad[:, [0, 2]] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_twice_the_weight_is_twice_the_loss_of_a_pair(name):
    policy, tokens, reference, weights = batch(b=1)
    one, two = (pair_loss(policy, tokens, reference, own, name)[0] for own in (weights, 2 * weights))
    assert float(two) == pytest.approx(2 * float(one), rel=1e-5)


def test_an_unknown_objective_is_refused():
    with pytest.raises(RequestError, match="nca"):
        pair_loss(*batch(), "nca")


def test_continued_sft_is_the_cross_entropy_of_the_preferred_answers():
    policy, tokens, _, _ = batch()
    loss, count, means = answer_loss(policy[:1], tokens[:1])
    assert float(loss) == pytest.approx(-float(policy[0].sum()))
    assert int(count) == int(tokens[0].sum())
    assert means == {}
