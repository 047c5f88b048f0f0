"""Layers of a tower that nothing reads: not computed inside a block, and computed where they are asked for."""

import pytest
import torch

from lightbox.backbones import vision
from lightbox.pruning.pipeline import prune


def vision_part(plain):
    return plain.model.get_submodule("model.vision_tower" if "llava" in plain.name else "model.visual")


def pixels_of(plain):
    inputs = plain.inputs([0, 1])
    return {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}


@pytest.fixture
def norms(request, plain_models):
    """The model, and how often each layer of its tower ran, counted by what is inside of them."""
    plain = plain_models(request.param)
    blocks = vision.blocks_of(vision_part(plain))
    counts = [0] * len(blocks)
    handles = []
    for place, block in enumerate(blocks):

        def count(*_: object, place: int = place) -> None:
            counts[place] += 1

        handles.append(block.layer_norm1.register_forward_hook(count))
    yield plain, blocks, counts
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("norms", ["llava-1.5-7b", "llava-next"], indirect=True)
def test_the_layer_behind_the_one_that_is_read_is_left_out_and_put_back(norms):
    plain, blocks, counts = norms
    with torch.no_grad():
        outside = plain.model.get_image_features(**pixels_of(plain))
        assert set(counts) == {1}
        with prune(plain.model, "cls_topk", 0.5):
            inside = plain.model.get_image_features(**pixels_of(plain))
    assert counts == [2] * (len(blocks) - 1) + [1]
    for own, other in zip(inside.pooler_output, outside.pooler_output, strict=True):
        assert torch.equal(own, other)
    assert inside.last_hidden_state is None
    assert all("forward" not in vars(block) for block in blocks)


@pytest.mark.parametrize("norms", ["llava-1.5-7b"], indirect=True)
@pytest.mark.parametrize("asked", [{"output_hidden_states": True}, {"vision_feature_layer": -1}])
def test_all_layers_run_where_the_last_is_asked_for(norms, asked):
    plain, _, counts = norms
    with torch.no_grad():
        outside = plain.model.get_image_features(**pixels_of(plain), **asked)
        with prune(plain.model, "divprune", 0.5):
            inside = plain.model.get_image_features(**pixels_of(plain), **asked)
    assert set(counts) == {2}
    assert torch.equal(inside.last_hidden_state, outside.last_hidden_state)


@pytest.mark.parametrize("norms", ["llava-1.5-7b"], indirect=True)
def test_a_layer_that_somebody_else_wrapped_runs_as_it_is(norms):
    plain, blocks, counts = norms
    plainly = blocks[-1].forward
    blocks[-1].forward = lambda *args, **kwargs: plainly(*args, **kwargs)
    try:
        with torch.no_grad(), prune(plain.model, "divprune", 0.5):
            plain.model.get_image_features(**pixels_of(plain))
        assert counts == [1] * len(blocks)
        assert "forward" in vars(blocks[-1])
    finally:
        del blocks[-1].forward


@pytest.mark.parametrize("norms", ["llava-1.5-7b"], indirect=True)
def test_an_error_in_the_tower_puts_the_layer_back(norms):
    plain, blocks, _ = norms
    with prune(plain.model, "divprune", 0.5), pytest.raises((RuntimeError, ValueError, TypeError)):
        plain.model.get_image_features(pixel_values=torch.zeros(1, 7, 3))
    assert all("forward" not in vars(block) for block in blocks)
