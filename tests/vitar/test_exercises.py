"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.eval.attention_mass import attention_mass
from lightbox.losses.policy import group_advantages
from lightbox.paper.image_tools import Action, Feedback, observe
from lightbox.records import Box
from vitar.rewards import Result, reward, terms_of

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "vitar"
TRUE, HALF, FAR = Box(0.2, 0.2, 0.4, 0.4), Box(0.2, 0.2, 0.4, 0.3), Box(0.7, 0.7, 0.9, 0.9)


def load_file(name):
    spec = importlib.util.spec_from_file_location(f"vitar_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_earned(earned):
    for turns in (
        ["box", "disc"],
        ["box", "oval"],
        ["Left_Disc"],
        ["left disc"],
        ["oval"],
        ["error", "disc"],
        ["box", "box"],
        ["error", "error"],
        ["error", "box", "box", "disc"],
    ):
        for truth in ("disc", "left disc"):
            answer = turns[-1] if turns[-1] not in ("box", "error") else None
            result = Result(turns.count("box"), (TRUE,), "error" in turns, answer, truth, (TRUE,))
            assert earned(turns, truth) == pytest.approx(reward(terms_of(result), "A").total)


def check_advantages(advantages):
    rng = np.random.default_rng(0)
    for rewards, group in (
        ([1.4, 0.4], 2),
        ([1.4, 0.4, 1.2, 1.2, 0.1, 0.1, 0.1, 0.1], 4),
        ([0.1] * 3, 3),
        (rng.choice([0.2, 0.4, 1.2, 1.4], 24).tolist(), 8),
    ):
        expected = group_advantages(torch.tensor(rewards, dtype=torch.float64), group)
        assert advantages(rewards, group) == pytest.approx(expected.tolist())
    assert advantages([0.1] * 3, 3) == [0.0] * 3


def check_enrichment(enrichment):
    rng = np.random.default_rng(1)
    for n in (4, 9):
        row, coverage = rng.random(n + 1) / (n + 1), rng.random(n)
        attention = torch.zeros(1, 1, n + 1, n + 1, dtype=torch.float64)
        attention[0, 0, n] = torch.tensor(row)
        query = torch.arange(n + 1) == n
        mass = attention_mass(attention, query, torch.arange(n), torch.tensor(coverage))
        assert enrichment(row[:n], coverage) == pytest.approx(float(mass.enrichment), rel=1e-5)
    assert enrichment(np.full(4, 0.1), np.array([1.0, 0.0, 0.0, 0.5])) == pytest.approx(1.0)


def check_paid_for_overlap(paid_for_overlap):
    def result(box, *, acts=1, answer="disc", true=(TRUE,)):
        return Result(acts, (box,) if acts else (), False, answer, "disc", true)

    for own, least, wanted in (
        (result(TRUE), 0.5, 1.4),
        (result(HALF), 0.4, 1.4),
        (result(HALF), 0.6, 1.2),
        (result(FAR), 0.1, 1.2),
        (result(FAR, answer="oval"), 0.1, 0.2),
        (result(TRUE, answer=None), 0.1, 0.2),
        (result(TRUE, acts=2, answer=None), 0.1, 0.4),
        (result(FAR, acts=2, answer=None), 0.1, 0.0),
        (result(TRUE, acts=0), 0.1, 1.2),
        (result(TRUE, true=()), 0.1, 1.2),
    ):
        assert paid_for_overlap(own, least) == pytest.approx(wanted)


def check_mirrored_mark(mirrored_mark):
    rng = np.random.default_rng(2)
    image = Image.fromarray(rng.integers(0, 256, (96, 96)).astype(np.uint8))
    for box in (TRUE, FAR, Box(0.0, 0.5, 0.25, 1.0)):
        other = Box(1 - box.x1, box.y0, 1 - box.x0, box.y1)
        seen = observe(image, [Action("mark", (other,))], Feedback(view_px=48)).images[0]
        before = image.tobytes()
        assert mirrored_mark(image, box, 48).tobytes() == seen.tobytes()
        assert image.tobytes() == before


def check_taught_to_act(taught_to_act):
    for group in (2, 5, 8):
        results = taught_to_act(group)
        assert len(results) == group
        assert len({(own.truth, own.true_boxes) for own in results}) == 1
        assert results[0].true_boxes
        terms = [terms_of(own) for own in results]
        assert not any(own["accuracy"] or own["iou"] for own in terms)
        assert all(len(own.boxes) == own.acts for own in results)
        leads = group_advantages(torch.tensor([reward(own, "A").total for own in terms]), group)
        assert (leads > 0).tolist() == [own.acts > 0 for own in results]
        assert 0 < int((leads > 0).sum()) < group


CHECKS = {
    "earned": check_earned,
    "advantages": check_advantages,
    "enrichment": check_enrichment,
    "paid_for_overlap": check_paid_for_overlap,
    "mirrored_mark": check_mirrored_mark,
    "taught_to_act": check_taught_to_act,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_pass_their_checks(name):
    CHECKS[name](getattr(load_file("solutions"), name))


@pytest.mark.parametrize("name", CHECKS)
def test_stubs_are_untouched_or_right(name):
    """For those who work on them; `test_exercises_are_shipped_as_stubs` then fails, as it should."""
    with contextlib.suppress(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name))


@pytest.mark.parametrize("name", CHECKS)
def test_exercises_are_shipped_as_stubs(name):
    with pytest.raises(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("earned", lambda turns, truth: 0.2 * len(turns)),
        ("advantages", lambda rewards, group: [own - sum(rewards) / len(rewards) for own in rewards]),
        ("enrichment", lambda attention, coverage: float((attention * coverage).sum())),
        ("paid_for_overlap", lambda result, least: reward(terms_of(result), "A").total),
        ("mirrored_mark", lambda image, box, view_px: image),
        ("taught_to_act", lambda group: [Result(0, (), False, "disc", "disc", (TRUE,))] * group),
    ],
)
def test_a_wrong_answer_is_found(name, wrong):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong)
