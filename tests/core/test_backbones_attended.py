"""The score matrix of a conversation of two turns with an image in each, read from a random Qwen2.5-VL and a LLaVA."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.attended import attended, box_coverage
from lightbox.backbones.conversation import Conversation, assistant, user
from lightbox.backbones.loading import load
from lightbox.backbones.rows import UNLIMITED
from lightbox.errors import RequestError
from lightbox.records import Box
from lightbox.testing.shrunk import save_shrunk


@pytest.fixture(scope="module", params=["qwen2.5-vl-7b", "llava-1.5-7b"])
def backbone(request, tmp_path_factory):
    return load(str(save_shrunk(request.param, tmp_path_factory.mktemp("model"))), attention="sdpa")


@pytest.fixture(scope="module")
def talk():
    draw = np.random.default_rng(0)
    first, second = (Image.fromarray(draw.integers(0, 256, (64, 64), dtype=np.uint8)) for _ in range(2))
    return Conversation(
        (user(first, "what is there ?"), assistant("a box"), user(second, "and now ?"), assistant("a small disc"))
    )


def test_turns_and_images_are_where_they_stand(backbone, talk):
    batch = backbone.prepare_conversations([talk], max_tokens=UNLIMITED)
    row = attended(backbone, batch)
    ids, labels = batch.inputs["input_ids"][0], batch.labels[0]
    assert [len(own) for own in row.images] == backbone.tokens_per_image(backbone.read_images(talk.images))
    assert all((ids[own] == backbone.image_token_id).all() for own in row.images)
    for mask, answer in zip(row.turns, ("a box", "a small disc"), strict=True):
        said = labels[1:][mask[:-1]].tolist()
        assert said == backbone.target_ids(answer)
    assert int(row.images[0].max()) < int(row.turns[0].nonzero().min()) < int(row.images[1].min())


def test_rows_sum_to_one_look_back_only_and_say_what_the_model_computes(backbone, talk):
    batch = backbone.prepare_conversations([talk], max_tokens=UNLIMITED)
    with torch.no_grad():
        before = backbone.token_logps(batch)
    row = attended(backbone, batch)
    length = batch.inputs["input_ids"].shape[1]
    assert row.attention.shape[-2:] == (length, length)
    torch.testing.assert_close(row.attention.sum(dim=-1), torch.ones(row.attention.shape[:3]), rtol=0, atol=1e-5)
    assert float(row.attention.triu(1).abs().max()) == 0
    with torch.no_grad():  # and attention is what it was
        assert torch.equal(backbone.token_logps(batch), before)
    assert backbone.core.config._attn_implementation == "sdpa"


def test_several_rows_are_refused(backbone, talk):
    with pytest.raises(RequestError, match="A batch of 2 rows"):
        attended(backbone, backbone.prepare_conversations([talk, talk], max_tokens=UNLIMITED))


def test_coverage_is_the_fraction_of_each_token_that_is_inside():
    assert box_coverage(Box(0, 0, 1, 1), 3, 2).tolist() == pytest.approx([1.0] * 6)
    box = Box(0.1, 0.3, 0.6, 0.35)
    assert float(box_coverage(box, 8, 8).sum()) == pytest.approx(box.area * 64, rel=1e-5)
    assert float(box_coverage(box, 4, 16).sum()) == pytest.approx(box.area * 64, rel=1e-5)
    assert box_coverage(box, 4, 2).tolist() == pytest.approx([0, 0, 0.16, 0.04, 0, 0, 0, 0], abs=1e-6)
