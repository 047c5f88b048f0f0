import math

import pytest
from torch import nn

from lightbox.errors import RequestError
from lightbox.testing.training import make_tagger
from lightbox.train.updates import decay_groups, lr_factor


def curve(max_steps, **options):
    return [lr_factor(step, max_steps=max_steps, **options) for step in range(max_steps)]


def test_linear_schedule_without_warmup_is_a_straight_line_down():
    assert curve(5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_warmup_rises_to_one_with_its_last_step_and_the_first_step_already_learns():
    assert curve(8, warmup_frac=0.5) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_cosine_is_one_half_in_the_middle_and_symmetric_around_it():
    factors = curve(10, schedule="cosine")
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    for step in range(1, 10):
        assert factors[step] + factors[10 - step] == pytest.approx(1.0)


def test_constant_stays_at_one():
    assert curve(4, schedule="constant") == [1.0] * 4


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("max_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.03, 0.5, 0.99])
def test_factors_are_positive_at_most_one_and_fall_after_warmup(schedule, max_steps, warmup_frac):
    factors = curve(max_steps, schedule=schedule, warmup_frac=warmup_frac)
    assert all(0 < factor <= 1 for factor in factors)
    tail = factors[round(warmup_frac * max_steps) :]
    assert tail == sorted(tail, reverse=True)
    assert math.isfinite(sum(factors))


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(RequestError, match=r"optim\.schedule is 'step'"):
        lr_factor(0, max_steps=3, schedule="step")


def test_norms_and_biases_do_not_decay_and_everything_trainable_is_taken_once():
    model = make_tagger(is_tied=True)
    model.mix.weight_hh_l0.requires_grad_(False)
    matrices, vectors = decay_groups(model, lr=0.1, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in matrices["params"]] == ["embed.weight", "mix.weight_ih_l0"]
    assert sorted(names[id(p)] for p in vectors["params"]) == [
        "head.bias",
        "mix.bias_hh_l0",
        "mix.bias_ih_l0",
        "norm.bias",
        "norm.weight",
    ]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)


def test_a_prefix_learns_at_its_own_rate_and_the_longest_one_counts():
    groups = decay_groups(make_tagger(), lr=0.1, weight_decay=0.0, lr_scale={"head.": 10.0, "head.bias": 0.5})
    rates = {tuple(p.shape): group["lr"] for group in groups for p in group["params"]}
    assert rates[(17, 12)] == pytest.approx(1.0)  # head.weight; the embedding has its shape and comes first
    assert rates[(17,)] == pytest.approx(0.05)


def test_a_frozen_model_and_a_prefix_of_nothing_are_refused():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(RequestError, match="no trainable parameter"):
        decay_groups(frozen, lr=0.1, weight_decay=0.0)
    with pytest.raises(RequestError, match=r"lr_scale names 'tail\.'"):
        decay_groups(make_tagger(), lr=0.1, weight_decay=0.0, lr_scale={"tail.": 2.0})
