"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

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


CHECKS = {
    "weigh": check_weigh,
    "noised_around": check_noised_around,
    "given_away_by_length": check_given_away_by_length,
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
    ],
)
def test_checks_catch_wrong_answers(name, wrong):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong)
