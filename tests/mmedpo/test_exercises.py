"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lightbox.losses.preference import Answers, kto_drift, preference_loss
from lightbox.paper.preference_pairs import Pair
from mmedpo.noise import noised
from mmedpo.relevance import normalised

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "mmedpo"


def load_file(name):
    spec = importlib.util.spec_from_file_location(f"mmedpo_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_weigh(weigh):
    rng = np.random.default_rng(0)
    for scores in (np.array([0.0, 1.0]), np.array([0.1, 0.2, 0.9]), rng.integers(0, 11, 200) / 10):
        before = scores.copy()
        np.testing.assert_allclose(weigh(scores), normalised(scores, "affine"))
        assert (scores == before).all()


def check_noised_around(noised_around):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 32, 32)).astype(np.uint8)
    lesions = np.zeros((3, 32, 32), bool)
    lesions[:, 5:12, 8:20] = True
    copies = noised_around(images, lesions, 700, [1, 2, 3])
    assert (copies[lesions] == images[lesions]).all()
    assert (copies[~lesions] != images[~lesions]).mean() > 0.9
    assert (copies == noised(images, ~lesions, 700, [1, 2, 3])).all()


def check_given_away_by_length(given_away_by_length):
    pairs = [
        Pair("a", "is it ?", "yes", "no"),
        Pair("b", "where ?", "left upper zone", "right upper zone", grade="near"),
    ]
    changed = given_away_by_length(pairs)
    assert [(own.id, own.prompt, own.chosen, own.grade) for own in changed] == [
        (own.id, own.prompt, own.chosen, own.grade) for own in pairs
    ]
    assert all(len(own.rejected.split()) > len(own.chosen.split()) for own in changed)
    assert all(own.chosen not in own.rejected for own in changed)


def check_svco(svco):
    generator = torch.Generator().manual_seed(2)
    for beta in (0.1, 1.0):
        gains = torch.randn(3, generator=generator).double() * 3
        own, other, blind = (Answers(gain[None], torch.ones(1, dtype=torch.long), torch.zeros(1)) for gain in gains)
        wanted, _ = preference_loss(own, other, "vco", blind=blind, beta=beta)
        assert svco(gains.tolist(), beta) == pytest.approx(float(wanted), rel=1e-6)
    assert svco([1.5] * 3, 1.0) == pytest.approx(2 * np.log(2))


def check_without_trivial(without_trivial):
    pairs = [Pair(name, "is it ?", "yes", "no") for name in "abcde"]
    chosen, rejected = torch.tensor([-1.0, -4.0, -1.0, -2.0, -9.0]), torch.tensor([-9.0, -1.0, -3.0, -2.0, -9.5])
    for lead, left in ((0.0, "bd"), (2.0, "bcde"), (0.5, "bde"), (9.0, "abcde")):
        assert [pair.id for pair in without_trivial(pairs, chosen, rejected, lead)] == list(left)
    assert without_trivial([], chosen[:0], rejected[:0], 0.0) == []


def check_hidden_drift(hidden_drift):
    for n, nats in ((1, 0.5), (4, 3.0), (7, 20.0)):
        gains = hidden_drift(n, nats)
        assert gains.shape == (n,)
        assert (gains.abs() >= nats).all()
        assert kto_drift([Answers(gains, torch.ones(n, dtype=torch.long), torch.zeros(n))]) == 0


CHECKS = {
    "weigh": check_weigh,
    "noised_around": check_noised_around,
    "given_away_by_length": check_given_away_by_length,
    "svco": check_svco,
    "without_trivial": check_without_trivial,
    "hidden_drift": check_hidden_drift,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_their_checks(name):
    CHECKS[name](getattr(load_file("solutions"), name))


@pytest.mark.parametrize("name", CHECKS)
def test_stubs_are_untouched_or_right(name):
    with contextlib.suppress(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("weigh", lambda scores: np.clip(scores, 0.75, 1.25)),
        ("noised_around", lambda images, lesions, step, seeds: noised(images, lesions, step, seeds)),
        ("given_away_by_length", lambda pairs: list(pairs)),
        ("svco", lambda gains, beta: np.log1p(np.exp(-beta * (gains[0] - gains[1])))),
        ("svco", lambda gains, beta: sum(np.log1p(np.exp(-beta * (gains[0] - gains[k]))) for k in (1, 2))),
        ("without_trivial", lambda pairs, chosen, rejected, lead: list(pairs)),
        ("without_trivial", lambda pairs, *known: [p for p, w, r in zip(pairs, *known[:2], strict=True) if w <= r]),
        ("hidden_drift", lambda n, nats: torch.full((n,), nats)),
        ("hidden_drift", lambda n, nats: torch.zeros(n)),
    ],
)
def test_checks_catch_wrong_answers(name, wrong):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong)
