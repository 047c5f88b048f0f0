"""`preview` chooses what `prune` chooses, under several budgets at once, and `tokens_on` counts by patch."""

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.pruning.pipeline import prune
from lightbox.pruning.preview import preview, tokens_on
from lightbox.testing.plain_models import PRUNING_SETTINGS

BUDGETS = (0.3, 3, 1.0)


def image_inputs(inputs):
    """Arguments of `get_image_features` among those of a forward."""
    return {name: value for name, value in inputs.items() if name in ("pixel_values", "image_sizes", "image_grid_thw")}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "divprune", "visionzip", "lesion_safe"])
@torch.no_grad()
def test_a_preview_is_what_pruning_keeps(plain, method):
    settings = PRUNING_SETTINGS.get(method, {})
    inputs = plain.inputs([0, 1])
    reports = preview(plain.model, method, image_inputs(inputs), budgets=BUDGETS, **settings)
    assert [report.budget for report in reports] == list(BUDGETS)
    for budget, report in zip(BUDGETS, reports, strict=True):
        with prune(plain.model, method, budget, **settings) as handle:
            plain.model(**inputs)
        expected = handle.report()
        assert report.tokens_after == expected.tokens_after
        assert report.tokens_before == expected.tokens_before
        for own, other in zip(report.kept, expected.kept, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_the_language_model_is_not_asked_and_the_model_is_free_after(llava):
    calls = []
    handle = llava.model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    inputs = llava.inputs([0])
    preview(llava.model, "cls_topk", image_inputs(inputs), budgets=[0.5])
    handle.remove()
    assert calls == []
    assert "get_image_features" not in vars(llava.model.model)
    with prune(llava.model, "random", 0.5):
        pass


@pytest.mark.parametrize(
    ("method", "budgets", "words"),
    [
        ("random", [], "budgets is empty"),
        ("random", [0.5, 0.0], "budget is 0.0"),
        ("random", [0.5, 10_000], "budget is 10000 tokens"),
        ("fastv", [0.5], "where='before_llm'"),
        ("finding_topk", [0.5], "without a finding map"),
    ],
)
def test_what_cannot_be_previewed_is_refused(llava, method, budgets, words):
    with pytest.raises(RequestError, match=words):
        preview(llava.model, method, image_inputs(llava.inputs([0])), budgets=budgets)


def test_a_patch_counts_where_it_holds_a_single_pixel():
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[3:5, 3] = True  # the last row and column of patch (0, 0), and the first row of patch (1, 0)
    kept = torch.ones(2, 3, dtype=torch.bool)
    assert tokens_on(kept, mask) == 2
    kept[0, 0] = False
    assert tokens_on(kept, mask) == 1
    assert tokens_on(kept, torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("shape", [(8, 13), (7, 12), (8, 12, 1)])
def test_a_mask_of_broken_patches_is_refused(shape):
    with pytest.raises(RequestError, match="over 2 x 3 patches"):
        tokens_on(torch.ones(2, 3, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool))
