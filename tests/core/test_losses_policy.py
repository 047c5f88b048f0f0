"""Losses over groups of episodes: advantages, clips by hand, masks, shaping by uncertainty; trl is in the peer file."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightbox.errors import RequestError
from lightbox.losses.policy import (
    Clips,
    group_advantages,
    moved_threshold,
    policy_loss,
    shaped_advantages,
    token_entropies,
    zero_variance_share,
)
from lightbox.testing.close import assert_close

OPEN = Clips(dual=None)


def one_token(ratio, advantage, clips=OPEN):
    """Loss and gradient with respect to rho of one token whose ratio is given."""
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    total, count, shares = policy_loss(
        logp,
        torch.tensor([advantage], dtype=torch.float64),
        torch.tensor([[True]]),
        old_logps=torch.zeros(1, 1, dtype=torch.float64),
        clips=clips,
    )
    total.backward()
    assert int(count) == 1
    return float(total.detach()), float(logp.grad) / ratio, {name: float(share) for name, share in shares.items()}


# ---- advantages


def test_advantages_are_the_distance_from_the_mean_in_sample_deviations():
    rewards = torch.tensor([1.4, 0.4, 0.4, 1.2, 0.0, 0.0, 1.4, 1.4], dtype=torch.float64)
    own = group_advantages(rewards, 4)
    for group in (slice(0, 4), slice(4, 8)):
        values = rewards[group].tolist()
        mean = sum(values) / 4
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 3)
        assert_close(own[group], [(value - mean) / (deviation + 1e-6) for value in values])
    assert_close(group_advantages(rewards, 4, is_scaled=False)[:4], [0.55, -0.45, -0.45, 0.35])
    assert_close(group_advantages(rewards[:2], 2, eps=1.0), [0.5 / (1 + math.sqrt(0.5)), -0.5 / (1 + math.sqrt(0.5))])


@pytest.mark.parametrize("is_scaled", [True, False])
@given(reward=st.floats(-10, 10, width=32), group=st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_a_group_of_equal_rewards_has_advantages_of_exactly_0(is_scaled, reward, group):
    rewards = torch.full((2 * group,), reward)
    rewards[group:] += torch.arange(group)  # a group that differs beside it
    own = group_advantages(rewards, group, is_scaled=is_scaled)
    assert own[:group].eq(0).all()
    assert group == 1 or own[group:].ne(0).any()


def test_equal_rewards_whose_mean_is_rounded_would_not_give_0_by_the_formula_alone():
    """The case that the exact 0 is for: 0.1 seven times has a float32 mean that is not 0.1."""
    rewards = torch.full((7,), 0.1)
    assert (rewards - rewards.mean()).ne(0).any()
    assert group_advantages(rewards, 7).eq(0).all()


def test_groups_that_earn_the_same_are_counted():
    assert zero_variance_share(torch.tensor([1.4, 1.4, 1.4, 1.4, 0.4, 1.4]), 2) == pytest.approx(2 / 3)
    assert zero_variance_share(torch.full((8,), 0.1), 4) == 1.0
    assert zero_variance_share(torch.tensor([0.0, 1.0, 2.0]), 3) == 0.0


def test_groups_do_not_see_each_other():
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0))
    together = group_advantages(rewards, 4)
    assert torch.equal(together[4:8], group_advantages(rewards[4:8], 4))


# ---- clips, by hand

BY_HAND = [
    # ratio, advantage, loss, gradient with respect to the ratio
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.0),
    (1.5, 2.0, -2.4, 0.0),  # a good token that is likelier by more than 1.2 already
    (0.5, 2.0, -1.0, -2.0),  # a good one that got rarer is still pulled up
    (0.5, -2.0, 1.6, 0.0),  # a bad one that is rarer than 0.8 already
    (1.5, -2.0, 3.0, 2.0),
    (5.0, -2.0, 10.0, 2.0),  # without a dual clip a bad token costs without bound
    (5.0, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), BY_HAND)
def test_a_token_costs_what_the_clip_says(ratio, advantage, loss, slope):
    total, gradient, shares = one_token(ratio, advantage)
    assert total == pytest.approx(loss)
    assert gradient == pytest.approx(slope)
    assert shares["ratio"] == pytest.approx(ratio)
    assert shares["clipped"] == float(slope == 0 and advantage != 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [(5.0, -2.0, 6.0, 0.0), (2.9, -2.0, 5.8, 2.0), (0.5, -2.0, 1.6, 0.0), (5.0, 2.0, -2.4, 0.0), (1.1, 2.0, -2.2, -2)],
)
def test_the_dual_clip_stops_bad_tokens_at_three_times_their_advantage_and_no_others(ratio, advantage, loss, slope):
    total, gradient, shares = one_token(ratio, advantage, Clips(dual=3.0))
    assert total == pytest.approx(loss)
    assert gradient == pytest.approx(slope)
    assert shares["dual_clipped"] == float(loss == 6.0)


def test_the_two_clips_may_differ():
    assert one_token(1.25, 1.0, Clips(high=0.28, dual=None))[0] == pytest.approx(-1.25)
    assert one_token(1.25, 1.0, Clips(high=0.1, dual=None))[0] == pytest.approx(-1.1)
    assert one_token(0.6, -1.0, Clips(low=0.5, dual=None))[0] == pytest.approx(0.6)


# ---- what is counted

LOGPS = torch.tensor([[-1.0, -2.0, -3.0, -0.5], [-0.2, -0.7, -1.5, -2.5]], dtype=torch.float64)
CHOSEN = torch.tensor([[False, True, True, True], [True, False, False, False]])


def test_the_mean_is_over_tokens_or_over_sequences():
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    by_token, tokens, _ = policy_loss(LOGPS, advantages, CHOSEN)
    by_sequence, sequences, _ = policy_loss(LOGPS, advantages, CHOSEN, clips=Clips(is_token_mean=False))
    assert [int(tokens), int(sequences)] == [4, 2]
    assert_close(by_token, 3 * -1.0 + 2.0)
    assert_close(by_sequence, -1.0 + 2.0)


@pytest.mark.parametrize("is_token_mean", [True, False])
def test_what_the_policy_was_told_changes_nothing_whatever_stands_there(is_token_mean):
    clips = Clips(is_token_mean=is_token_mean, kl=0.1)
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    old, reference = LOGPS - 0.1, LOGPS + 0.3
    wanted, count, shares = policy_loss(
        LOGPS, advantages, CHOSEN, old_logps=old, reference_logps=reference, clips=clips
    )
    for told in (-50.0, -math.inf, math.nan):
        own = LOGPS.masked_fill(~CHOSEN, told).requires_grad_()
        others = (value.masked_fill(~CHOSEN, told) for value in (old, reference))
        names = ("old_logps", "reference_logps")
        total, again, more = policy_loss(own, advantages, CHOSEN, clips=clips, **dict(zip(names, others, strict=True)))
        total.backward()
        assert torch.equal(total.detach(), wanted)
        assert int(again) == int(count)
        assert more == shares
        assert own.grad[~CHOSEN].eq(0).all()
        assert own.grad[CHOSEN].ne(0).all()


@pytest.mark.parametrize("is_token_mean", [True, False])
def test_an_episode_without_a_chosen_token_counts_nothing(is_token_mean):
    clips = Clips(is_token_mean=is_token_mean)
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    chosen = CHOSEN & torch.tensor([[True], [False]])
    total, count, _ = policy_loss(LOGPS, advantages, chosen, clips=clips)
    alone, once, _ = policy_loss(LOGPS[:1], advantages[:1], CHOSEN[:1], clips=clips)
    assert (float(total), int(count)) == (float(alone), int(once))
    own = LOGPS.clone().requires_grad_()
    nothing, none, shares = policy_loss(own, advantages, torch.zeros_like(CHOSEN), clips=clips)
    nothing.backward()
    assert (float(nothing.detach()), int(none)) == (0.0, 0)
    assert own.grad.eq(0).all()
    assert all(math.isfinite(float(share)) for share in shares.values())


def test_without_old_ones_the_gradient_is_that_of_the_policy_gradient():
    own = LOGPS.clone().requires_grad_()
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    policy_loss(own, advantages, CHOSEN)[0].backward()
    assert_close(own.grad, -advantages[:, None] * CHOSEN)


def test_a_group_of_zero_variance_moves_nothing_even_at_a_wild_ratio():
    own = torch.tensor([[0.0], [-1.0]], requires_grad=True)
    advantages = group_advantages(torch.tensor([1.4, 1.4]), 2)
    old = torch.tensor([[-500.0], [-1.0]])
    total, _, _ = policy_loss(own, advantages, torch.ones(2, 1, dtype=torch.bool), old_logps=old)
    total.backward()
    assert float(total.detach()) == 0.0
    assert own.grad.eq(0).all()


def test_the_divergence_is_k3_and_pulls_toward_the_reference():
    reference = LOGPS + 0.5
    own = LOGPS.clone().requires_grad_()
    clips = Clips(kl=0.04)
    zero = torch.zeros(2, dtype=torch.float64)
    total, tokens, shares = policy_loss(own, zero, CHOSEN, reference_logps=reference, clips=clips)
    k3 = math.exp(0.5) - 0.5 - 1
    assert_close(total, 0.04 * 4 * k3)
    assert float(shares["kl"]) == pytest.approx(k3)
    total.backward()
    assert own.grad[CHOSEN].lt(0).all()
    free, _, measured = policy_loss(own, zero, CHOSEN, reference_logps=reference)
    assert float(free.detach()) == 0.0
    assert float(measured["kl"]) == pytest.approx(k3)  # logged although it weighs nothing


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    old, reference = (LOGPS + torch.randn(LOGPS.shape, generator=generator) for _ in range(2))
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for is_token_mean in (True, False):
        clips = Clips(kl=0.3, is_token_mean=is_token_mean)

        def total(logps, clips=clips):
            return policy_loss(logps, advantages, CHOSEN, old_logps=old, reference_logps=reference, clips=clips)[0]

        assert torch.autograd.gradcheck(total, LOGPS.clone().requires_grad_())


# ---- uncertainty


def test_uncertain_episodes_count_more_where_they_were_good_and_less_where_they_were_bad():
    advantages, entropies = torch.tensor([2.0, 2.0, -2.0, -2.0, 0.0]), torch.tensor([1.0, 0.25, 1.0, 0.25, 9.0])
    own = shaped_advantages(advantages, entropies, 0.5, strength=0.3)
    sure, unsure = math.tanh(-0.5), math.tanh(1.0)
    assert_close(own, [2 + 0.6 * unsure, 2 + 0.6 * sure, -2 + 0.6 * unsure, -2 + 0.6 * sure, 0.0])
    assert torch.equal(shaped_advantages(advantages, entropies, 0.5, strength=0.0), advantages)
    assert_close(shaped_advantages(advantages, torch.full((5,), 0.5), 0.5), advantages)


def test_the_threshold_is_a_running_mean():
    first = moved_threshold(None, torch.tensor([0.2, 0.6]))
    assert first == pytest.approx(0.4)
    assert moved_threshold(first, torch.tensor([1.0, 1.8]), decay=0.75) == pytest.approx(0.75 * 0.4 + 0.25 * 1.4)


def test_entropies_are_those_of_the_distribution():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [0.0, math.log(3), -math.inf, -math.inf]])
    own = token_entropies(logits)
    assert_close(own[0], math.log(4))
    assert float(own[1]) == pytest.approx(0, abs=1e-6)
    assert_close(own[2], math.log(4) - 0.75 * math.log(3))


# ---- refused


def test_what_cannot_be_computed_is_refused():
    for wrong in ({"low": 1.0}, {"high": -0.1}, {"dual": 1.1}, {"kl": -1.0}, {"kl": math.nan}):
        with pytest.raises(RequestError, match="Correct them"):
            replace(Clips(), **wrong)
    with pytest.raises(RequestError, match="5 rewards in groups of 2, 0 of them not finite"):
        group_advantages(torch.zeros(5), 2)
    with pytest.raises(RequestError, match="1 of them not finite"):
        group_advantages(torch.tensor([math.nan, 1.0]), 2)
    with pytest.raises(RequestError, match="without a reference"):
        policy_loss(LOGPS, torch.zeros(2, dtype=torch.float64), CHOSEN, clips=Clips(kl=0.1))
    for threshold, strength in ((0.0, 0.3), (0.5, 1.0)):
        with pytest.raises(RequestError, match="could change its sign"):
            shaped_advantages(torch.ones(1), torch.ones(1), threshold, strength=strength)
