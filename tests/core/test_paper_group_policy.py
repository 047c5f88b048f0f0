"""A random tiny model that is rewarded for what it says first: what a step is, what it learns, what cannot stop it."""

import dataclasses
import logging
import math

import pytest
import torch

from lightbox.adapters.attach import attach
from lightbox.backbones.conversation import Conversation, user
from lightbox.backbones.generation import Sampling
from lightbox.backbones.loading import load
from lightbox.backbones.rows import IGNORED, UNLIMITED
from lightbox.config import AdapterConfig, OptimConfig, RunConfig
from lightbox.errors import RequestError
from lightbox.losses.policy import Clips, group_advantages, policy_loss
from lightbox.paper.group_policy import (
    ALARM_STEPS,
    Alarm,
    Group,
    GroupSettings,
    Played,
    batch_of_groups,
    learn_in_groups,
)
from lightbox.testing.shrunk import save_shrunk

PROMPTS = ["left or right ?", "is there a nodule ?", "what is it ?", "report"]
OPTIM = OptimConfig(lr=5e-3, max_steps=6, batch_size=2, warmup_frac=0.0, weight_decay=0.0)
RUN = RunConfig(seed=0, threads=1, log_every_steps=1)
FOUR = GroupSettings(group=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_shrunk("llava-1.5-7b", tmp_path_factory.mktemp("llava"))


def opened(folder):
    """The model with a head that is spread out, so that it is surer of some words than of others."""
    own = load(str(folder))
    head = own.part(own.family.head)
    spread = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
    head.weight = torch.nn.Parameter(0.3 * spread)
    return own


@pytest.fixture
def policy(folder):
    return opened(folder)


def says(policy, indices, seeds):
    """Three tokens a prompt, drawn by the seeds: ids, which are chosen, log-probabilities."""
    group = len(seeds) // len(indices)
    asked = [Conversation((user(PROMPTS[index]),)) for index in indices for _ in range(group)]
    batch = policy.prepare_conversations(asked, max_tokens=UNLIMITED, padding="left")
    out = policy.generate(batch, max_new_tokens=3, sampling=Sampling(seeds, 1.0))
    for row in range(len(seeds)):
        prompt = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()].tolist()
        chosen = out.ids[row][out.is_token[row]].tolist()
        yield prompt, chosen, out.logps[row][: len(chosen)].tolist()


def player(reward_of):
    def play(policy, indices, seeds):
        episodes = []
        for prompt, chosen, logps in says(policy, indices, seeds):
            is_chosen = [False] * len(prompt) + [True] * len(chosen)
            episodes.append(Played(prompt + chosen, is_chosen, logps, [], reward_of(chosen), {"n": 1.0}))
        return episodes

    return play


def even(chosen):
    return float(chosen[0] % 2 == 0)


def trained(policy, out, play, *, settings=FOUR, **more):
    optim = dataclasses.replace(OPTIM, **more)
    return learn_in_groups(policy, len(PROMPTS), play, settings=settings, optim=optim, run=RUN, out=out)


def tensors_of(policy):
    return {name: own.detach().clone() for name, own in policy.model.named_parameters()}


@pytest.mark.slow
def test_a_policy_comes_to_say_what_is_rewarded(policy, tmp_path):
    curves = trained(policy, tmp_path, player(even), max_steps=30)
    rewards = [value for _, value in curves["train/reward"]]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert {"train/entropy", "train/zero_variance", "train/clipped", "train/kl", "train/n"} <= curves.keys()
    ratios = [value for _, value in curves["train/ratio"]]
    assert max(abs(ratio - 1) for ratio in ratios) < 1e-3  # who played is who learns


def test_the_gradient_of_a_step_is_that_of_the_policy_loss(policy, tmp_path):
    before = tensors_of(policy)
    seen = []

    def play(own, indices, seeds):
        seen.extend(player(even)(own, indices, seeds))
        return list(seen)

    trained(policy, tmp_path, play, max_steps=1)
    moved = {name: own - before[name] for name, own in tensors_of(policy).items()}
    other = opened(policy.name)
    advantages = group_advantages(torch.tensor([own.reward for own in seen]), 4)
    batch = batch_of_groups(other, [Group(seen, advantages.tolist(), {})])
    other.model.train()
    total, _, _ = policy_loss(other.token_logps(batch.rows), advantages, batch.rows.labels != IGNORED)
    total.backward()
    # Adam's first step moves each weight by the rate against the sign of its gradient
    for name, own in other.model.named_parameters():
        clear = torch.zeros_like(own, dtype=torch.bool) if own.grad is None else own.grad.abs() > 1e-5
        assert (moved[name][clear].sign() == -own.grad[clear].sign()).all() if clear.any() else True
    assert sum(bool((own != 0).any()) for own in moved.values()) > 5


def test_groups_that_earn_the_same_teach_nothing_and_stop_nothing(policy, tmp_path):
    before = tensors_of(policy)
    curves = trained(policy, tmp_path, player(lambda _: 0.5))
    assert {value for _, value in curves["train/zero_variance"]} == {1.0}
    assert all(torch.equal(own, before[name]) for name, own in tensors_of(policy).items())


def test_episodes_without_tokens_are_left_out(policy, tmp_path):
    def play(own, indices, seeds):
        made = player(even)(own, indices, seeds)
        return [Played([], [], [], [], 0.0, {"n": 1.0}), *made[1:]]

    curves = trained(policy, tmp_path / "one", play)
    assert all(math.isfinite(value) for _, value in curves["train/loss"])
    nothing = trained(
        policy, tmp_path / "all", lambda own, indices, seeds: [Played([], [], [], [], 0.0, {"n": 1.0}) for _ in seeds]
    )
    assert {value for _, value in nothing["train/loss"]} == {0.0}


@pytest.mark.slow
def test_a_reference_holds_the_policy_back(policy, folder, tmp_path):
    free = trained(policy, tmp_path / "free", player(even), max_steps=12)
    held = opened(folder)
    tied = trained(
        held, tmp_path / "tied", player(even), settings=GroupSettings(group=4, clips=Clips(kl=5.0)), max_steps=12
    )
    assert free["train/kl"][-1][1] == 0  # nothing was compared
    assert tied["train/kl"][0][1] == pytest.approx(0, abs=1e-6)  # the policy is the reference still
    assert tied["train/kl"][-1][1] > 0
    start = tensors_of(opened(folder))
    gaps = [sum(float((own - start[name]).norm()) for name, own in tensors_of(p).items()) for p in (policy, held)]
    assert gaps[1] < gaps[0]


def test_shaping_by_uncertainty_changes_what_is_learnt(policy, folder, tmp_path):
    trained(policy, tmp_path / "plain", player(even))
    other = opened(folder)
    curves = trained(other, tmp_path / "shaped", player(even), settings=GroupSettings(group=4, shaping=0.5))
    assert all(math.isfinite(value) for _, value in curves["train/loss"])
    ends = tensors_of(policy), tensors_of(other)
    assert any(not torch.equal(own, ends[1][name]) for name, own in ends[0].items())


@pytest.mark.slow
def test_a_run_that_goes_on_ends_in_the_same_weights(policy, folder, tmp_path):
    trained(policy, tmp_path / "whole", player(even))
    other = opened(folder)
    run = dataclasses.replace(RUN, save_every_steps=3)

    class Killed(Exception):
        pass

    calls = []

    def play(own, indices, seeds):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return player(even)(own, indices, seeds)

    with pytest.raises(Killed):
        learn_in_groups(other, len(PROMPTS), play, settings=FOUR, optim=OPTIM, run=run, out=tmp_path / "cut")
    again = opened(folder)
    learn_in_groups(again, len(PROMPTS), player(even), settings=FOUR, optim=OPTIM, run=run, out=tmp_path / "cut")
    whole = tensors_of(policy)
    assert all(torch.equal(own, whole[name]) for name, own in tensors_of(again).items())


def test_a_group_of_one_and_episodes_in_another_number_are_refused(policy, tmp_path):
    with pytest.raises(RequestError, match="Groups of 1"):
        GroupSettings(group=1)
    with pytest.raises(RequestError, match="episodes of 2 prompts"):
        trained(policy, tmp_path, lambda own, indices, seeds: player(even)(own, indices, seeds)[:-1])


@pytest.mark.slow
def test_the_reference_of_an_adapter_is_the_model_without_it(policy, tmp_path):
    attached = attach(policy, AdapterConfig(kind="lora", r=4, alpha=8))
    settings = GroupSettings(group=4, clips=Clips(kl=0.5))
    curves = trained(attached, tmp_path, player(even), settings=settings, lr=2e-2, max_steps=12)
    kl = [value for _, value in curves["train/kl"]]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-3


def test_groups_that_earn_the_same_stop_no_policy_that_is_partly_frozen(policy, tmp_path):
    policy.part(policy.family.vision).requires_grad_(False)
    curves = trained(policy, tmp_path, player(lambda _: 0.5))
    assert {value for _, value in curves["train/zero_variance"]} == {1.0}


def test_an_alarm_is_given_once_where_nobody_acts(caplog):
    alarm = Alarm("the share that acts", 0.1, "Look why.")
    with caplog.at_level(logging.WARNING):
        for rate in [0.0] * (ALARM_STEPS - 1) + [0.5] + [0.05] * (ALARM_STEPS + 5):
            alarm.see(rate)
    assert len(caplog.records) == 1
    assert "In 10 steps on end the share that acts was below 0.1. Look why." in caplog.text
