"""Preference losses: equal to formulas written out, to the usual library's step, and what must hold of any of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightbox.errors import RequestError
from lightbox.losses.preference import OBJECTIVES, Answers, is_won, kto_drift, preference_loss, rewards
from lightbox.testing.close import assert_close

WITH_REFERENCE = [name for name, own in OBJECTIVES.items() if own.has_reference]


def drawn(seed, *, b=4):
    """Answers of b pairs, float64, and what they were made from."""
    generator = torch.Generator().manual_seed(seed)

    def one():
        tokens = torch.randint(1, 6, (b,), generator=generator)
        policy, reference = (-2 * torch.rand(b, generator=generator, dtype=torch.float64) * tokens for _ in range(2))
        return Answers(policy.requires_grad_(), tokens, reference)

    return one(), one(), one()


def loss_of(name, pair, **options):
    chosen, rejected, blind = pair
    if OBJECTIVES[name].reads_blind:
        options["blind"] = blind
    return preference_loss(chosen, rejected, name, **options)


def cost(lead):
    return math.log1p(math.exp(-lead))


def written_out(name, pair, row, *, beta, smoothing, margin, drift):
    """One pair's loss in plain floats."""
    (p_w, n_w, r_w), (p_l, n_l, r_l), (p_o, _, r_o) = (
        (float(own.policy.detach()[row]), int(own.tokens[row]), float(own.reference[row])) for own in pair
    )
    h_w, h_l, h_o = p_w - r_w, p_l - r_l, p_o - r_o
    if name == "dpo":
        return (1 - smoothing) * cost(beta * (h_w - h_l)) + smoothing * cost(beta * (h_l - h_w))
    if name == "robust":
        right, wrong = cost(beta * (h_w - h_l)), cost(beta * (h_l - h_w))
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    if name == "ipo":
        return (h_w / n_w - h_l / n_l - 0.5 / beta) ** 2
    if name == "kto":
        return 2 - 1 / (1 + math.exp(-beta * (h_w - drift))) - 1 / (1 + math.exp(-beta * (drift - h_l)))
    if name == "simpo":
        return cost(beta * (p_w / n_w - p_l / n_l) - margin)
    if name == "orpo":
        odds = [math.log(math.exp(mean) / (1 - math.exp(mean))) for mean in (p_w / n_w, p_l / n_l)]
        return -p_w / n_w + beta * cost(odds[0] - odds[1])
    return cost(beta * (h_w - h_o)) + cost(beta * (h_o - h_l))


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_an_objective_is_its_formula_written_out(name, seed):
    pair, numbers = drawn(seed), {"beta": 0.3, "smoothing": 0.1, "margin": 0.2, "drift": 0.4}
    weights = torch.tensor([1.25, 0.75, 1.0, 0.0], dtype=torch.float64)
    total, pairs = loss_of(name, pair, weights=weights, **numbers)
    expected = sum(float(w) * written_out(name, pair, row, **numbers) for row, w in enumerate(weights))
    assert int(pairs) == 4
    assert_close(total, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name):
    pair = drawn(7)

    def total(*policies):
        answers = [Answers(p, own.tokens, own.reference) for p, own in zip(policies, pair, strict=True)]
        return loss_of(name, answers, smoothing=0.1, margin=0.2, drift=0.1)[0]

    assert torch.autograd.gradcheck(total, [own.policy for own in pair])


@pytest.mark.parametrize("name", ["dpo", "robust"])
def test_at_step_0_the_loss_is_the_mean_weight_times_log_2(name):
    chosen, rejected, _ = (Answers(own.reference.clone(), own.tokens, own.reference) for own in drawn(1))
    weights = torch.tensor([1.25, 0.75, 0.9, 1.1], dtype=torch.float64)
    total, pairs = preference_loss(chosen, rejected, name, weights=weights)
    assert float(total / pairs) == pytest.approx(float(weights.mean()) * math.log(2))
    other, _ = preference_loss(chosen, rejected, name, weights=weights[[3, 0, 1, 2]])
    assert_close(other, float(total))


@pytest.mark.parametrize("name", ["dpo", "robust", "ipo", "simpo"])
def test_an_identical_pair_moves_no_weight(name):
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    tokens, reference = torch.tensor([3, 2]), torch.tensor([-1.0, -2.0], dtype=torch.float64)
    same = Answers(theta * torch.tensor([-2.0, -3.0], dtype=torch.float64), tokens, reference)
    preference_loss(same, same, name)[0].backward()
    assert theta.grad == 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_pair_without_tokens_costs_nothing_and_is_not_nan(name):
    chosen, rejected, blind = drawn(3)
    none = Answers(
        torch.zeros(4, dtype=torch.float64, requires_grad=True), torch.zeros(4, dtype=torch.long), blind.policy
    )
    total, pairs = loss_of(name, (none, rejected, blind))
    total.backward()
    assert (total.item(), int(pairs)) == (0.0, 0)
    assert all(own.policy.grad is None or not own.policy.grad.any() for own in (none, rejected))
    tokens = chosen.tokens.clone()
    tokens[1] = 0
    some, pairs = loss_of(name, (Answers(chosen.policy, tokens, chosen.reference), rejected, blind))
    assert int(pairs) == 3
    assert torch.isfinite(some)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_falls_as_the_preferred_answer_gets_likelier(name):
    pair = drawn(11)
    loss_of(name, pair, beta=0.5)[0].backward()
    if name == "ipo":  # it has a goal and not a direction: below the goal, likelier is better
        lead = pair[0].mean(pair[0].gain) - pair[1].mean(pair[1].gain)
        assert bool(((pair[0].policy.grad < 0) == (lead < 1)).all())
    else:
        assert bool((pair[0].policy.grad < 0).all())
        assert bool((pair[1].policy.grad > 0).all())


def test_swapping_the_answers_flips_the_margin_and_who_has_won():
    chosen, rejected, _ = drawn(5)
    ours, theirs = rewards(chosen, rejected, 0.2)
    back = rewards(rejected, chosen, 0.2)
    assert torch.equal(ours - theirs, -(back[0] - back[1]))
    assert torch.equal(is_won(chosen, rejected), ~is_won(rejected, chosen))
    assert_close(ours, 0.2 * (chosen.policy - chosen.reference).detach())


@pytest.mark.parametrize("objective", ["simpo", "orpo"])
def test_an_objective_without_a_reference_takes_none(objective):
    chosen, rejected, _ = (Answers(own.policy, own.tokens) for own in drawn(2))
    assert torch.isfinite(preference_loss(chosen, rejected, objective)[0])


def test_a_certain_answer_has_finite_odds():
    certain = Answers(torch.zeros(1, requires_grad=True), torch.tensor([1]))
    other = Answers(torch.tensor([-2.0], requires_grad=True), torch.tensor([1]))
    total, _ = preference_loss(certain, other, "orpo")
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(other.policy.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "dop"}, "objective is 'dop'"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"smoothing": 0.5}, "smoothing is 0.5"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"drift": float("nan")}, "drift is nan"),
        ({"objective": "vco"}, "without answers that saw no image"),
    ],
)
def test_what_cannot_be_computed_is_refused(options, message):
    chosen, rejected, _ = drawn(0)
    with pytest.raises(RequestError, match=message):
        preference_loss(chosen, rejected, **options)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_a_missing_reference_is_refused(name):
    chosen, rejected, blind = (Answers(own.policy, own.tokens) for own in drawn(0))
    with pytest.raises(RequestError, match="have no reference"):
        loss_of(name, (chosen, rejected, blind))


def test_answers_without_an_image_are_refused_where_nothing_reads_them():
    chosen, rejected, blind = drawn(0)
    with pytest.raises(RequestError, match="Leave blind out"):
        preference_loss(chosen, rejected, "dpo", blind=blind)


def test_the_drift_is_the_mean_gain_of_mismatched_answers_cut_at_0_and_without_gradient():
    policy = torch.tensor([-1.0, -2.0, -9.0], requires_grad=True)
    tokens, reference = torch.tensor([1, 2, 0]), torch.tensor([-3.0, -3.0, -1.0])
    assert kto_drift([Answers(policy, tokens, reference)]) == pytest.approx(1.5)  # an answer without tokens is none
    assert kto_drift([Answers(policy, tokens, reference)] * 2) == pytest.approx(1.5)
    assert kto_drift([Answers(reference, tokens, policy)]) == 0.0
    assert kto_drift([Answers(policy, torch.zeros(3, dtype=int), reference)]) == 0.0


def test_an_objective_reads_as_many_answers_as_it_says():
    assert {name: own.n_answers for name, own in OBJECTIVES.items() if own.n_answers > 2} == {"kto": 4, "vco": 3}
