"""A picture is encoded once, and its embedding has the same bits whoever asks."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.segmenter import load_segmenter
from lightbox.errors import RequestError
from lightbox.paper.picture_memory import PictureMemory


@pytest.fixture
def segmenter(folders):
    return load_segmenter(str(folders / "sam"))


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in ((48, 64), (64, 64), (80, 40))]


def count_encoded(segmenter):
    """A list that grows by the number of pictures of each pass of the encoder."""
    passes = []
    segmenter.model.vision_encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    return passes


def test_a_picture_is_encoded_once_and_the_embedding_is_that_of_the_segmenter(segmenter, pictures):
    memory, passes = PictureMemory(segmenter), count_encoded(segmenter)
    first = memory.embed(pictures)
    again = memory.embed([pictures[2], pictures[0]])
    assert passes == [1, 1, 1]
    assert torch.equal(again.features, first.features[[2, 0]])
    assert again.image_hw == [[80, 40], [48, 64]]
    whole = segmenter.embed(pictures)
    assert (first.image_hw, first.frame_hw) == (whole.image_hw, whole.frame_hw)
    torch.testing.assert_close(first.features, whole.features, rtol=0, atol=1e-5)


def test_pictures_of_the_same_bytes_and_another_shape_are_two(segmenter):
    flat = np.arange(64 * 32, dtype=np.uint8)
    wide, tall = (Image.fromarray(flat.reshape(shape)) for shape in ((32, 64), (64, 32)))
    seen = PictureMemory(segmenter).embed([wide, tall])
    assert not torch.equal(seen.features[0], seen.features[1])


def test_what_was_met_first_is_forgotten_where_there_is_no_room(segmenter, pictures):
    one = segmenter.embed(pictures[:1]).features.nbytes
    memory, passes = PictureMemory(segmenter, most_bytes=2 * one), count_encoded(segmenter)
    memory.embed(pictures)
    assert memory.n_bytes == 2 * one
    memory.embed(pictures[1:])
    assert len(passes) == 3
    memory.embed(pictures[:1])
    assert len(passes) == 4


def test_no_pictures_are_refused_as_by_the_segmenter(segmenter):
    with pytest.raises(RequestError, match="No images"):
        PictureMemory(segmenter).embed([])
