"""Properties of the weighted preference loss."""

import math

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.losses.preference import objective_of
from mmedpo.config import PREFERENCES
from mmedpo.objective import LOSSES, answer_loss, pair_loss


def batch(b=5, seed=0, name="dpo"):
    generator = torch.Generator().manual_seed(seed)
    sides = objective_of(LOSSES.get(name, name)).n_answers
    tokens = torch.randint(1, 9, (sides, b), generator=generator)
    policy = -torch.rand(sides, b, generator=generator) * tokens
    reference = -torch.rand(sides, b, generator=generator) * tokens
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


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_pair_without_tokens_gives_nothing_and_no_nan(name):
    policy, tokens, reference, weights = batch(b=3, name=name)
    tokens[1, 1] = 0
    policy.requires_grad_()
    loss, pairs, _ = pair_loss(policy, tokens, reference, weights, name)
    loss.backward()
    assert int(pairs) == 2
    assert torch.isfinite(loss)
    assert (policy.grad[:, 1] == 0).all()
    read = 3 if name == "svco" else 2
    assert (policy.grad[:read, [0, 2]] != 0).all()
    assert (policy.grad[read:] == 0).all()  # answers to other prompts say how far the policy is, and are not learnt


@pytest.mark.parametrize("name", PREFERENCES)
def test_twice_the_weight_is_twice_the_loss_of_a_pair(name):
    policy, tokens, reference, weights = batch(b=1, name=name)
    one, two = (pair_loss(policy, tokens, reference, own, name)[0] for own in (weights, 2 * weights))
    assert float(two) == pytest.approx(2 * float(one), rel=1e-5)


def test_an_unknown_objective_is_refused():
    with pytest.raises(RequestError, match="nca"):
        pair_loss(*batch(), "nca")


def test_svco_is_won_by_the_true_image_over_none_and_by_none_over_the_other():
    policy, tokens, reference, weights = batch(name="svco")
    loss, pairs, _ = pair_loss(policy, tokens, reference, weights, "svco", beta=0.3)
    total = 0.0
    for k, weight in enumerate(weights.tolist()):
        chosen, rejected, blind = (float(policy[side, k] - reference[side, k]) for side in range(3))
        total += weight * sum(math.log(1 + math.exp(-0.3 * lead)) for lead in (chosen - blind, blind - rejected))
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert int(pairs) == 5


def test_the_drift_of_kto_is_the_mean_gain_of_answers_to_other_prompts_and_no_less_than_0():
    policy, tokens, reference, weights = batch(name="kto")
    for shift, expected in ((2.0, 2.0), (-2.0, 0.0)):
        moved = torch.cat([policy[:2], reference[2:] + shift])
        loss, _, means = pair_loss(moved, tokens, reference, weights, "kto", beta=0.3)
        assert float(means["drift"]) == pytest.approx(expected)
        gains = policy[:2] - reference[:2]
        sides = 0.3 * torch.stack([gains[0] - expected, expected - gains[1]])
        assert float(loss) == pytest.approx(float(((1 - sides.sigmoid()) * weights).sum()), rel=1e-5)


@pytest.mark.parametrize(("name", "other"), [("kto", "dpo"), ("svco", "dpo"), ("dpo", "svco")])
def test_other_rows_than_an_objective_reads_are_refused(name, other):
    with pytest.raises(RequestError, match=f"objective.method is {name}"):
        pair_loss(*batch(name=other), name)


def test_continued_sft_is_the_cross_entropy_of_the_preferred_answers():
    policy, tokens, _, _ = batch()
    loss, count, means = answer_loss(policy[:1], tokens[:1])
    assert float(loss) == pytest.approx(-float(policy[0].sum()))
    assert int(count) == int(tokens[0].sum())
    assert means == {}
