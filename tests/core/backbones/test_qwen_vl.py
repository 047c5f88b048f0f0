"""Qwen2-VL and Qwen2.5-VL: token counts, positions in three dimensions, order of patches, pixels of boxes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightbox.backbones.codecs import PerMille
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.testing.shrunk import save_shrunk


@pytest.fixture(scope="module", params=["qwen2-vl-7b", "qwen2.5-vl-7b"])
def folder(request, tmp_path_factory):
    return save_shrunk(request.param, tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def qwen(folder):
    return load(str(folder))


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def positions_of(backbone, batch):
    """Position ids that the language model is given: 3 b t."""
    seen = {}
    reader = backbone.part(backbone.family.language)
    handle = reader.register_forward_pre_hook(lambda _, __, inputs: seen.update(inputs), with_kwargs=True)
    with torch.no_grad():
        backbone.model(**batch.inputs)
    handle.remove()
    return seen["position_ids"]


@pytest.mark.parametrize("side", ["right", "left"])
def test_image_takes_rows_and_columns_and_text_goes_on_behind_the_longer_side(qwen, side):
    """Positions by hand, in two rows of unequal length, whatever the padding."""
    images = [picture(112, 56), picture(56, 84)]
    batch = qwen.prepare(images, ["Side?", "Is there an effusion in it?"], max_tokens=200, padding=side)
    positions = positions_of(qwen, batch)
    for row, (rows, columns) in enumerate([(2, 4), (3, 2)]):
        is_read = batch.inputs["attention_mask"][row].bool()
        ids, places = batch.inputs["input_ids"][row][is_read], positions[:, row, is_read]
        begin = int((ids == qwen.image_token_id).nonzero()[0])
        end = begin + rows * columns
        assert places[:, :begin].tolist() == [list(range(begin))] * 3
        grid = [(begin, begin + r, begin + c) for r in range(rows) for c in range(columns)]
        assert places[:, begin:end].T.tolist() == [list(place) for place in grid]
        after = begin + max(rows, columns)
        assert places[:, end:].tolist() == [list(range(after, after + len(ids) - end))] * 3


@pytest.mark.parametrize("size", [(112, 112), (90, 70), (640, 480), (30, 300), (29, 29), (57, 100)])
def test_resized_size_is_that_of_the_processor(qwen, size):
    grid = qwen.read_images([picture(*size)])["image_grid_thw"][0].tolist()
    assert qwen.seen_size(*size) == (grid[2] * 14, grid[1] * 14)


def test_seen_sides_are_whole_tokens_near_the_image_within_the_bounds(qwen):
    """Of 300 images of any shape; a strip has one token across, however long it is."""
    qwen.limit_pixels(56 * 56, 224 * 224)
    for width, height in (
        np.exp(np.random.default_rng(0).uniform(np.log(10), np.log(1500), (300, 2))).astype(int).tolist()
    ):
        seen = qwen.seen_size(width, height)
        rounded_area = math.prod(round(side / 28) * 28 for side in (width, height))
        area = min(max(rounded_area, 56 * 56), 224 * 224)
        scale = 1 if area == rounded_area else math.sqrt(area / (width * height))
        for side, seen_side in zip((width, height), seen, strict=True):
            assert seen_side % 28 == 0
            assert abs(seen_side - side * scale) <= 28 or seen_side == 28
        assert 56 * 56 <= math.prod(seen) <= (math.inf if 28 in seen else 224 * 224)


@pytest.mark.parametrize("size", [(28, 5601), (5601, 28)])
def test_strip_that_is_not_read_has_no_size(qwen, size):
    with pytest.raises(RequestError, match=rf"{size[0]} x {size[1]} px.*must be smaller than 200.*Cut it into pieces"):
        qwen.seen_size(*size)


def test_pixel_bounds_decide_tokens_and_boxes(qwen):
    image = picture(640, 480)
    counts = []
    for most in (56 * 56, 112 * 112, 224 * 224):
        qwen.limit_pixels(56 * 56, most)
        batch = qwen.prepare([image], ["Side?"], max_tokens=200)
        counts.append(int((batch.inputs["input_ids"] == qwen.image_token_id).sum()))
        width, height = qwen.seen_size(640, 480)
        assert width * height <= most
        assert counts[-1] == width * height / 784
    assert counts == [2, 12, 54]
    if qwen.family.codec == "pixels":
        assert qwen.codec.encode((0, 0, 1, 1), 640, 480) == '{"bbox_2d": [0, 0, 252, 168]}'
    else:
        assert qwen.codec == PerMille()


@pytest.mark.parametrize("bounds", [(100, 100), (12544, 3136)])
def test_pixel_bounds_without_a_token_are_refused(qwen, bounds):
    with pytest.raises(RequestError, match="Set both to at least 784"):
        qwen.limit_pixels(*bounds)


class Passing(nn.Module):
    """A layer that changes nothing."""

    def forward(self, hidden, **_):
        return hidden


def test_taps_are_in_reading_order_whatever_order_the_tower_works_in(qwen):
    """With layers that change nothing, a tap is the patch's own embedding, and grey levels tell which patch."""
    tower = qwen.part(qwen.family.vision)
    tower.blocks = nn.ModuleList([Passing(), Passing()])
    rows, columns = 6, 10
    levels = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) * 4
    checked = Image.fromarray(np.kron(levels, np.ones((14, 14), dtype=np.uint8)))
    with torch.no_grad():
        taps = qwen.tower([picture(56, 84), checked], layers=(0, 1)).taps
    grey = taps[0].outputs[1]
    assert torch.equal(grey, taps[1].outputs[1])
    direction = grey[-1] - grey[0]  # embeddings of flat patches lie on a line, by grey level
    heights = (grey - grey[0]) @ direction / direction.square().sum()
    wanted = torch.from_numpy(levels.flatten() / levels.max()).float()
    torch.testing.assert_close(heights, wanted, atol=1e-3, rtol=0)
