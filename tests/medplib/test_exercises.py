"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lightbox.eval.masks import drawn_at, score_mask
from lightbox.paper.drawn_regions import OWN, REGION
from lightbox.paper.image_frames import stretched
from lightbox.paper.mask_scores import PAPER_THRESHOLD
from lightbox.paper.pixel_prompts import mask_of, pool, region_weights
from medplib.config import resolve
from medplib.data import load_splits

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "medplib"


def load_file(name):
    spec = importlib.util.spec_from_file_location(f"medplib_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def samples():
    """Training questions of every task."""
    return load_splits(resolve(["preset=smoke", "experiment=vl", "data.n_train=15", "run.seed=2"]))[0].samples


def discs(n, seed):
    """Masks of one size at places of their own."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:64, :64]
    return [(y - cy) ** 2 + (x - cx) ** 2 < 8**2 for cy, cx in rng.uniform(18, 46, (n, 2))]


def check_pool_region(pool_region, samples):
    rng = np.random.default_rng(0)
    one_pixel = np.zeros((40, 100), bool)
    one_pixel[29, 63] = True
    for mask, grid in ((rng.random((40, 100)) < 0.2, (4, 10)), (one_pixel, (4, 10)), (one_pixel, (8, 5))):
        patches = rng.normal(size=(*grid, 3))
        weights = region_weights([mask], stretched(mask.shape, mask.shape), grid)
        wanted = pool(torch.from_numpy(patches.reshape(-1, 3)), weights)[0].numpy()
        np.testing.assert_allclose(pool_region(patches, mask), wanted, atol=1e-12)


def check_with_mirrored_region(with_mirrored_region, samples):
    before = [dict(sample.record.regions) for sample in samples]
    changed = with_mirrored_region(samples)
    assert [list(sample.record.regions) for sample in samples] == [list(own) for own in before]
    assert all(s.record.regions[kind] is own[kind] for s, own in zip(samples, before, strict=True) for kind in own)
    moved = 0
    for new, old in zip(changed, samples, strict=True):
        own, was = new.record, old.record
        assert (new.id, new.image, own.text, own.answer) == (old.id, old.image, was.text, was.answer)
        assert own.mask is was.mask
        assert own.regions.keys() == was.regions.keys()
        stays = [kind for kind in was.regions if was.task != REGION or kind != OWN]
        assert all(own.regions[kind] is was.regions[kind] for kind in stays)
        if was.task == REGION:
            drawn = mask_of(own.regions[OWN], was.mask.shape)
            assert np.array_equal(drawn, was.mask[:, ::-1])
            moved += not (drawn & was.mask).any()
    assert moved > 0


def check_draw_blindly(draw_blindly, samples):
    logits, scored = draw_blindly(discs(300, 0)), discs(200, 1)
    assert np.isfinite(logits).all()
    at = {cut: [score_mask(drawn_at(logits, cut), mask)["dice"] for mask in scored] for cut in (0.5, PAPER_THRESHOLD)}
    assert np.mean(at[PAPER_THRESHOLD]) - np.mean(at[0.5]) > 0.1
    said, share = 1 / (1 + np.exp(-logits)), np.mean(scored, axis=0)
    for low in (0.05, 0.1, 0.2):
        is_near = (said >= low) & (said < 2 * low)
        assert is_near.any()
        assert abs(said[is_near].mean() - share[is_near].mean()) < 0.05


CHECKS = {
    "pool_region": check_pool_region,
    "with_mirrored_region": check_with_mirrored_region,
    "draw_blindly": check_draw_blindly,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solution_is_right(name, samples):
    CHECKS[name](getattr(load_file("solutions"), name), samples)


@pytest.mark.parametrize("name", CHECKS)
def test_exercise_is_untouched_or_right(name, samples):
    """For those who work on them; `test_exercises_are_shipped_as_stubs` then fails, as it should."""
    with contextlib.suppress(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name), samples)


@pytest.mark.parametrize("name", CHECKS)
def test_exercises_are_shipped_as_stubs(name, samples):
    with pytest.raises(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name), samples)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pool_region", lambda patches, mask: patches.mean(axis=(0, 1))),
        ("with_mirrored_region", lambda samples: list(samples)),
        ("draw_blindly", lambda masks: np.where(np.mean(masks, axis=0) > 0.1, -1.0, -9.0)),
    ],
)
def test_a_wrong_answer_is_found(name, wrong, samples):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong, samples)
