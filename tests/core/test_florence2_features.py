"""A Florence-2 on features that its frozen tower made before says what it says of the images."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones import florence2
from lightbox.backbones.attention import choose
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.families import BY_MODEL_TYPE
from lightbox.backbones.florence2 import Florence2Backbone, Florence2OnFeatures
from lightbox.backbones.florence2 import _of_rows as of_rows
from lightbox.errors import RequestError
from lightbox.paper import region_loss
from lightbox.paper.region_loss import loss_with_regions, regions_of
from lightbox.pretrain.florence2 import make_model, make_processor, make_tokenizer

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
PROMPTS = ["<CAPTION_TO_PHRASE_GROUNDING>dense disc", "<CAPTION_TO_PHRASE_GROUNDING>hazy band , left hilum"]
TARGETS = ["<loc_3><loc_4><loc_20><loc_63>", "nothing"]


@pytest.fixture(scope="module")
def pair():
    """The same random model, once on images and once on features."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model, processor = make_model(tokenizer).eval(), make_processor(tokenizer)
    parts = {
        "attention": choose("eager", device="cpu", dtype="fp32", model_type="florence2"),
        "name": "tiny",
        "revision": "",
        "quant": "none",
        "dtype": torch.float32,
    }
    return [
        kind(model, processor, BY_MODEL_TYPE["florence2"], **parts) for kind in (Florence2Backbone, Florence2OnFeatures)
    ]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)) for _ in PROMPTS]


def test_the_loss_and_its_gradient_are_those_on_images(pair, images):
    on_images, on_features = pair
    patches = on_features.encode_images(images)
    assert patches.shape == (2, 64, 96)
    gradients = []
    for backbone, seen in ((on_images, images), (on_features, patches)):
        batch = backbone.prepare(seen, PROMPTS, TARGETS, max_tokens=200)
        total, tokens, _ = backbone.loss(batch)
        backbone.model.zero_grad()
        (total / tokens).backward()
        projector = backbone.part(backbone.family.projector).image_projection.weight
        gradients.append((total.detach(), tokens, projector.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    assert gradients[0][2].abs().max() > 0


def test_answers_are_those_on_images(pair, images):
    on_images, on_features = pair
    said = on_images.answer(images, PROMPTS, max_new_tokens=12)
    assert on_features.answer(on_features.encode_images(images), PROMPTS, max_new_tokens=12) == said
    assert on_features.answer(on_features.encode_images(images[::-1]), PROMPTS, max_new_tokens=12, batch_size=1)


@pytest.mark.parametrize("limit", [1, 2, 12])
def test_rows_that_have_ended_leave_the_batch_and_change_nothing(pair, images, monkeypatch, limit):
    backbone = copy.deepcopy(pair[1])
    torch.manual_seed(1)
    for weights in backbone.core.model.language_model.parameters():
        if weights.ndim > 1:  # else it says one token over and over
            torch.nn.init.normal_(weights, std=0.3)
    backbone.core.generation_config.forced_bos_token_id = None
    prompts = [TASK + words for words in ("dense disc", "hazy band , left hilum", "disc", "band , left", "faint ring")]
    batch = backbone.prepare(backbone.encode_images([images[k % 2] for k in range(5)]), prompts)
    said = Backbone.generate(backbone, batch, max_new_tokens=12).ids
    ends = [int(said[0, 0]), int(said[1, 3]), int(said[3, 9])]  # of three rows, at their first, fourth and tenth token
    monkeypatch.setattr(backbone.core.generation_config, "eos_token_id", ends)
    expected = Backbone.generate(backbone, batch, max_new_tokens=limit)
    sizes = []
    monkeypatch.setattr(florence2, "FEWEST", 2)
    monkeypatch.setattr(florence2, "_of_rows", lambda *parts: sizes.append(len(parts[2])) or of_rows(*parts))
    answers = backbone.generate(batch, max_new_tokens=limit)
    assert not answers.logps.requires_grad
    assert torch.equal(answers.ids, expected.ids)
    assert torch.equal(answers.is_token, expected.is_token)
    torch.testing.assert_close(answers.logps, expected.logps, rtol=0, atol=1e-5)
    assert answers.texts == expected.texts
    assert expected.is_token.sum(dim=1).tolist() == [1, *(min(length, limit) for length in (4, 12, 10, 12))]
    assert sizes == ([3, 2] if limit == 12 else [])  # a quarter of the rows must have ended


def test_text_alone_is_read_too(pair):
    on_images, on_features = pair
    assert on_features.answer(None, PROMPTS, max_new_tokens=6) == on_images.answer(None, PROMPTS, max_new_tokens=6)


def test_a_row_that_is_too_long_is_refused(pair, images):
    patches = pair[1].encode_images(images)
    with pytest.raises(RequestError, match="Item 0 has 76 tokens in the prompt"):
        pair[1].prepare(patches, PROMPTS, max_tokens=70)
    with pytest.raises(RequestError, match="2 prompts, 1 images"):
        pair[1].prepare(patches[:1], PROMPTS)


def test_boxes_of_a_tokenizer_of_words_are_read_back(pair):
    backbone = pair[1]
    target = "zexa<loc_3><loc_4><loc_20><loc_63><loc_1><loc_2><loc_9><loc_9>"
    ids = torch.tensor(backbone.target_ids(target))
    text = backbone.read_ids(ids)
    assert text.replace("zexa ", "zexa") == target
    assert len(backbone.codec.decode(text, 64, 64)) == 2
    spans = backbone.token_spans(ids)
    assert [text[begin:end].strip() for begin, end in spans[2:6]] == [f"<loc_{k}>" for k in (3, 4, 20, 63)]


def test_a_contrast_of_regions_stands_beside_the_loss(pair, images):
    for backbone, seen in ((pair[0], images), (pair[1], pair[1].encode_images(images))):
        batch = backbone.prepare(seen, PROMPTS, TARGETS, max_tokens=200)
        regions, rows = regions_of(backbone, batch)
        assert rows == [0]  # the other target holds no box
        x0, y0, x1, y1 = ((place + 0.5) / backbone.codec.bins for place in (3, 4, 20, 63))
        expected = [
            x0 < (x + 1) / 8 and x1 > x / 8 and y0 < (y + 1) / 8 and y1 > y / 8 for y in range(8) for x in range(8)
        ]
        assert regions[0].tolist() == expected
        torch.manual_seed(1)
        plain, tokens, _ = backbone.loss(batch)
        total, same_tokens, means = loss_with_regions(backbone, batch, weight=0.5, task=TASK)
        assert same_tokens == tokens
        assert means["region"] > 0
        torch.testing.assert_close(total, plain + 0.5 * means["region"] * tokens)
        backbone.model.zero_grad()
        (total - plain).backward()
        assert backbone.core.get_encoder().layers[-1].fc2.weight.grad.abs().max() > 0


def test_a_batch_without_a_box_has_the_plain_loss(pair, images):
    backbone = pair[1]
    batch = backbone.prepare(backbone.encode_images(images), PROMPTS, ["nothing", ""], max_tokens=200)
    plain, tokens, _ = backbone.loss(batch)
    total, same_tokens, means = loss_with_regions(backbone, batch, weight=0.5, task=TASK)
    assert (total, same_tokens, means["region"]) == (plain, tokens, 0)


def test_the_phrase_is_what_prompts_do_not_share(pair, images, monkeypatch):
    backbone, asked = pair[1], []
    monkeypatch.setattr(
        region_loss,
        "region_phrase_contrast",
        lambda states, patches, words, *rest: asked.append(words) or words.sum() * 0.0,
    )
    batch = backbone.prepare(backbone.encode_images(images), PROMPTS, [TARGETS[0]] * 2, max_tokens=200)
    loss_with_regions(backbone, batch, weight=0.5, task=TASK)
    said = [
        backbone.tokenizer.decode(ids[words]) for ids, words in zip(batch.inputs["input_ids"], asked[0], strict=True)
    ]
    assert said == [prompt.removeprefix(TASK) for prompt in PROMPTS]


def test_the_contrast_is_taken_in_full_precision_under_autocast(pair, images):
    backbone = pair[1]
    batch = backbone.prepare(backbone.encode_images(images), PROMPTS, TARGETS, max_tokens=200)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, means = loss_with_regions(backbone, batch, weight=0.5, task=TASK)
    assert means["region"].dtype == torch.float32
    assert torch.isfinite(total)
