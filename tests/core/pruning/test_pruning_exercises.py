"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from lightbox.kernels.greedy_select.op import greedy_select
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.pruning.methods import lesion_safe
from lightbox.pruning.options import Options
from lightbox.pruning.preview import tokens_on
from lightbox.pruning.prompt import shortened
from lightbox.pruning.types import TokenGrid, VisualBatch

FOLDER = Path(__file__).resolve().parents[3] / "packages" / "core" / "pruning"
SIDE = 24


def load_exercise(file, name):
    spec = importlib.util.spec_from_file_location(f"pruning_{file}", FOLDER / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.fixture(scope="module")
def lesions():
    """Masks of lesions of the phantom: of training images, and of others."""
    knobs = Knobs(image_px=192, lesion_scale_pct=50)
    return [
        [
            torch.from_numpy(np.asarray(finding.mask))
            for case in draw_cases(seed_range(split, 1, n), knobs, questions_per_case=0)
            for finding in case.findings
        ]
        for split, n in (("train", 200), ("development", 80))
    ]


def check_keep_far(keep_far, lesions):
    assert keep_far(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]), 2) == [0, 3]
    random = torch.Generator().manual_seed(0)
    for size, count in ((1, 1), (5, 5), (40, 1), (40, 8), (100, 37)):
        x = torch.randn(size, 16, generator=random)
        whole = torch.tensor([0, size], dtype=torch.int32)
        expected = greedy_select(x, whole, torch.tensor([count], dtype=torch.int32), count).tolist()
        assert keep_far(x, count) == expected


def map_with_regions(seed, n_regions):
    """A map of 8 x 8 tokens, and regions of one to six tokens apart from each other, the best one first."""
    rng = np.random.default_rng(seed)
    finding = torch.from_numpy(rng.uniform(0.0, 0.4, 64)).float()
    places = rng.permutation(64).tolist()
    regions = []
    for size in rng.integers(1, 7, n_regions).tolist():
        own, places = places[:size], places[size:]
        finding[own] = torch.from_numpy(rng.uniform(0.5, 1.0, size)).float()
        regions.append(sorted(own, key=lambda place: -float(finding[place])))
    return finding, sorted(regions, key=lambda region: -float(finding[region[0]]))


def check_keep_findings(keep_findings, lesions):
    finding = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.6, 0.0])
    assert keep_findings(finding, [[0, 1, 2], [4]], 2) == [0, 4]
    assert keep_findings(finding, [[0, 1, 2], [4]], 3) == [0, 1, 4]
    assert keep_findings(finding, [], 2) == [0, 1]
    assert keep_findings(finding, [[0], [4], [3]], 1) == [0]
    assert keep_findings(finding, [[0, 1], [0, 2]], 3) == [0, 1, 2]
    assert finding.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.1, 0.6, 0.0])
    for seed in range(20):
        finding, regions = map_with_regions(seed, 5)
        marked = sum(len(region) for region in regions)
        for count in range(len(regions), marked + 1):
            # within what the regions hold, the library's grid gets nothing
            batch = VisualBatch(
                x=torch.zeros(64, 2),
                counts=[64],
                grids=[TokenGrid.plain(8, 8)],
                groups=[[0]],
                keys=torch.zeros(1, dtype=torch.int64),
                finding=finding,
                regions=[regions],
            )
            expected = lesion_safe.select(batch, [count], Options(floor_uniform=0.0)).idx.tolist()
            kept = keep_findings(finding, regions, count)
            assert kept == expected
            assert all(set(region) & set(kept) for region in regions)


def prompt_of_qwen(before, rows, columns, behind):
    """Positions (3, t) as Qwen2-VL counts them: words, a picture, words; and which tokens are the picture's."""
    words = torch.arange(before).expand(3, -1)
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
    picture = torch.cat([torch.zeros(1, rows * columns, dtype=torch.int64), grid]) + before
    text = torch.arange(behind).expand(3, -1) + before + max(rows, columns)
    is_image = torch.tensor([False] * before + [True] * (rows * columns) + [False] * behind)
    return torch.cat([words, picture, text], dim=1), is_image


def check_positions_after(positions_after, lesions):
    for before, rows, columns, behind in ((1, 2, 3, 2), (4, 6, 2, 1), (2, 12, 12, 5)):
        positions, is_image = prompt_of_qwen(before, rows, columns, behind)
        for share in (0.0, 0.2, 0.7, 1.0):
            random = torch.Generator().manual_seed(rows)
            is_kept = torch.rand(rows * columns, generator=random) < share
            stays = torch.ones_like(is_image).masked_scatter(is_image, is_kept)
            made = shortened(
                {"input_ids": torch.where(is_image, 7, 1)[None]},
                positions[:, None],
                is_image[None],
                is_kept,
                mode="keep",
                pad_id=0,
                n_dropped=[int((~is_kept).sum())],
            )
            own, delta = positions_after(positions, stays)
            assert torch.equal(own, made.inputs["position_ids"][:, 0])
            assert int(stays.sum()) + delta == int(made.following) == int(positions.max()) + 1


def check_usual_places(usual_places, lesions):
    known, others = lesions
    count = 57
    places = usual_places(known, count)
    assert places == sorted(set(places))
    assert len(places) == count
    assert 0 <= places[0] <= places[-1] < SIDE**2
    kept = torch.zeros(SIDE**2, dtype=torch.bool)
    kept[places] = True
    hits = [tokens_on(kept.view(SIDE, SIDE), mask) > 0 for mask in others]
    assert sum(hits) / len(hits) > 0.95


CHECKS = {
    "keep_far": check_keep_far,
    "keep_findings": check_keep_findings,
    "positions_after": check_positions_after,
    "usual_places": check_usual_places,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solution_is_right(name, lesions):
    CHECKS[name](load_exercise("solutions", name), lesions)


@pytest.mark.parametrize("name", CHECKS)
def test_exercise_is_untouched_or_right(name, lesions):
    """For those who work on them; `test_exercises_are_shipped_as_stubs` then fails, as it should."""
    with contextlib.suppress(NotImplementedError):
        CHECKS[name](load_exercise("exercises", name), lesions)


@pytest.mark.parametrize("name", CHECKS)
def test_exercises_are_shipped_as_stubs(name, lesions):
    with pytest.raises(NotImplementedError):
        CHECKS[name](load_exercise("exercises", name), lesions)


def top_k(finding, regions, count):
    return sorted(torch.sort(finding, descending=True, stable=True).indices[:count].tolist())


def nearest_to_the_first(x, count):
    return sorted((x @ x[0]).argsort(stable=True)[:count].tolist())


def with_the_remembered_delta(positions, stays):
    return positions[:, stays], int(positions.max()) + 1 - len(stays)


def closed_up(positions, stays):
    return torch.arange(int(stays.sum())).expand(3, -1), 0


def even_places(masks, count):
    return [place * SIDE**2 // count for place in range(count)]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("keep_far", nearest_to_the_first),
        ("keep_far", lambda x, count: list(range(count))),
        ("keep_findings", top_k),
        ("keep_findings", lambda finding, regions, count: [region[0] for region in regions]),
        ("positions_after", with_the_remembered_delta),
        ("positions_after", closed_up),
        ("usual_places", even_places),
    ],
)
def test_a_wrong_answer_is_found(name, wrong, lesions):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong, lesions)
