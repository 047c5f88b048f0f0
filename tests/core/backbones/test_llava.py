"""LLaVA-1.5, its Mistral body and LLaVA-NeXT: token counts, vision tokens, taps, tiles; the real ones in miniature."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.backbone import VisionTokens
from lightbox.backbones.loading import load
from lightbox.errors import RequestError
from lightbox.testing.shrunk import save_shrunk
from lightbox.testing.tiny_models import save_llava

SIZES = [(56, 56), (50, 160), (160, 50), (100, 100), (61, 97)]
"""Height and width in pixels; tiles of LLaVA-NeXT follow them."""


def picture(seed, height, width):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [picture(seed, *size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=["llava-1.5-7b", "llava-med", "llava-next"])
def backbone(request, tmp_path_factory):
    return load(str(save_shrunk(request.param, tmp_path_factory.mktemp("llava"))))


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory):
    return load(str(save_shrunk("llava-next", tmp_path_factory.mktemp("next"))))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(str(save_llava(tmp_path_factory.mktemp("tiny"))))


def test_prompt_rows_hold_as_many_image_tokens_as_the_tower_gives(backbone):
    batch = backbone.prepare(IMAGES, ["Is it?"] * len(IMAGES), max_tokens=400)
    in_rows = (batch.inputs["input_ids"] == backbone.image_token_id).sum(dim=1).tolist()
    with torch.no_grad():
        given = [len(tokens) for tokens in backbone.vision_tokens(IMAGES).tokens]
    assert in_rows == given
    assert (len(set(given)) > 1) == (backbone.family.name == "llava_next")


def test_loss_of_images_of_unequal_size_equals_theirs_one_by_one(backbone):
    prompts, targets = ["Is it?", "Where", "What is that", "So", "A"], ["no", "left", "yes", "it is", "b"]
    together = backbone.sequence_logps(backbone.prepare(IMAGES, prompts, targets, max_tokens=400))
    alone = [
        backbone.sequence_logps(backbone.prepare([image], [prompt], [target], max_tokens=400))
        for image, prompt, target in zip(IMAGES, prompts, targets, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-4)


def test_generation_is_the_same_alone_and_in_a_batch(backbone):
    prompts = ["Is it?", "Where", "What is that", "So", "A"]
    together = backbone.generate(IMAGES, prompts, max_new_tokens=5)
    assert [backbone.generate([i], [p], max_new_tokens=5)[0] for i, p in zip(IMAGES, prompts, strict=True)] == together


def test_template_of_the_processor_is_used(backbone):
    text = backbone.write_prompt("Is it?", has_image=True)
    by_family = {"vicuna": "USER: <image>\nIs it? ASSISTANT:", "mistral": "[INST] <image>\nIs it? [/INST]"}
    assert text in by_family.values()
    assert "<image>" not in backbone.write_prompt("Is it?", has_image=False)


def test_plain_prompt_is_what_the_published_template_writes(tiny, tmp_path_factory):
    published = load(str(save_shrunk("llava-1.5-7b", tmp_path_factory.mktemp("published"))))
    assert tiny.processor.chat_template is None
    for has_image in (True, False):
        assert tiny.write_prompt("Is it?", has_image=has_image) == published.write_prompt("Is it?", has_image=has_image)


@torch.no_grad()
def test_tap_of_the_layer_that_is_read_gives_the_vision_tokens(backbone):
    """LLaVA projects the output of the last layer but one; projecting that tap by hand gives the tokens."""
    made = backbone.vision_tokens(IMAGES[:2], layers=(-2, 0))
    assert isinstance(made, VisionTokens)
    assert set(made.taps) == {-2, 0}
    whole = made.taps[-2][1] if backbone.family.name == "llava" else made.taps[-2][1][0]
    count = 56 // 14
    projected = backbone.part(backbone.family.projector)(whole)
    torch.testing.assert_close(made.tokens[1][: count**2], projected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made.taps[0][0], made.taps[-2][0])


@torch.no_grad()
def test_taps_by_place_from_either_end_are_the_same_and_leave_no_hooks(backbone):
    tower = backbone.part(backbone.family.vision)
    made = backbone.vision_tokens(IMAGES[:1], layers=(0, 2, -1, -3))
    assert torch.equal(made.taps[2][0], made.taps[-1][0])
    assert torch.equal(made.taps[0][0], made.taps[-3][0])
    layers = tower.encoder.layers
    own = {id(hook) for layer in layers for hook in layer._forward_hooks.values()}
    backbone.vision_tokens(IMAGES[:1], layers=(1,))
    assert {id(hook) for layer in layers for hook in layer._forward_hooks.values()} == own


def test_a_layer_outside_the_tower_is_refused(backbone):
    with pytest.raises(RequestError, match=r"Layers \[3\] of a tower with 3 layers"):
        backbone.vision_tokens(IMAGES[:1], layers=(0, 3))


def test_vision_tokens_carry_gradient_to_the_projector(tiny):
    made = tiny.vision_tokens(IMAGES[:1])
    made.tokens[0].sum().backward()
    assert tiny.part(tiny.family.projector).linear_2.weight.grad.abs().sum() > 0
    tiny.model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_grid_times_tokens_of_the_square(tiny):
    made = tiny.vision_tokens(IMAGES[:2])
    assert made.grids == [(4, 4), (4, 4)]
    assert [tokens.shape for tokens in made.tokens] == [(16, 32), (16, 32)]


@torch.no_grad()
def test_tiles_follow_the_shape_of_the_image(llava_next):
    """Tower of 56 px in patches of 14: 16 tokens of the whole, then rows of tiles with a newline each."""
    made = llava_next.vision_tokens(IMAGES)
    expected = {
        (56, 56): (4, 4),  # 1 x 2 tiles: no larger grid shows more of it
        (50, 160): (4, 12),  # 1 x 3 tiles, fits but for less than a row
        (160, 50): (12, 4),
        (100, 100): (8, 8),  # 2 x 2 tiles
        (61, 97): (6, 8),  # 2 x 2 tiles of which 112 * 61 / 97 = 70 px are image: 5.03 rows, and margins are even
    }
    assert dict(zip(SIZES, made.grids, strict=True)) == expected
    counts = [16 + rows * (columns + 1) for rows, columns in expected.values()]
    assert [len(tokens) for tokens in made.tokens] == counts


def test_processor_without_patch_size_takes_it_from_the_model(tmp_path, tiny):
    """Processors saved before transformers 4.44 have none, and counting would fail."""
    folder = save_llava(tmp_path)
    settings = (folder / "processor_config.json").read_text()
    for line in ('"patch_size": 8', '"vision_feature_select_strategy": "default"', '"num_additional_image_tokens": 1'):
        assert line in settings
        name, _, _ = line.partition(":")
        settings = settings.replace(line, f"{name}: {0 if 'additional' in line else 'null'}")
    (folder / "processor_config.json").write_text(settings)
    old = load(str(folder))
    one, other = (b.prepare(IMAGES[:1], ["Is it?"], max_tokens=100).inputs["input_ids"] for b in (old, tiny))
    assert torch.equal(one, other)


def test_a_tower_without_class_token_keeps_all_patches(tmp_path, tiny):
    """SigLIP towers come with the strategy "full"; a CLIP tower with "full" gives its class token too."""
    folder = save_llava(tmp_path)
    for name in ("config.json", "processor_config.json"):
        text = (folder / name).read_text().replace('_strategy": "default"', '_strategy": "full"')
        (folder / name).write_text(text)
    full = load(str(folder))
    batch = full.prepare(IMAGES[:1], ["Is it?"], ["no"], max_tokens=100)
    assert (batch.inputs["input_ids"] == full.image_token_id).sum() == 17
    assert torch.isfinite(full.loss(batch)[0])
