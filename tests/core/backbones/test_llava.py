"""LLaVA-1.5, its Mistral body and LLaVA-NeXT: token counts, vision tokens, taps, tiles; the real ones in miniature."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.backbones.conversation import Conversation, user
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
        counts = [len(tokens) for tokens in backbone.project(backbone.tower(IMAGES))]
    assert in_rows == counts
    assert (len(set(counts)) > 1) == (backbone.family.name == "llava_next")


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
    together = backbone.answer(IMAGES, prompts, max_new_tokens=5)
    assert [backbone.answer([i], [p], max_new_tokens=5)[0] for i, p in zip(IMAGES, prompts, strict=True)] == together


def written(backbone, *, has_image):
    parts = (IMAGES[0], "Is it?") if has_image else ("Is it?",)
    (text,) = backbone.write(Conversation((user(*parts),)))
    return text


def test_template_of_the_processor_is_used(backbone):
    by_family = {"vicuna": "USER: <image>\nIs it? ASSISTANT:", "mistral": "[INST] <image>\nIs it? [/INST]"}
    assert written(backbone, has_image=True) in by_family.values()
    assert "<image>" not in written(backbone, has_image=False)


def test_plain_prompt_is_what_the_published_template_writes(tiny, tmp_path_factory):
    published = load(str(save_shrunk("llava-1.5-7b", tmp_path_factory.mktemp("published"))))
    assert tiny.processor.chat_template is None
    for has_image in (True, False):
        assert written(tiny, has_image=has_image) == written(published, has_image=has_image)


@torch.no_grad()
def test_tap_of_the_layer_that_is_read_is_what_the_projector_reads(backbone):
    """LLaVA projects the output of the last layer but one."""
    features = backbone.tower(IMAGES[:2], layers=(-2, 0))
    assert set(features.taps) == {-2, 0}
    for patches, output in zip(features.patches, features.taps[-2].outputs, strict=True):
        assert torch.equal(patches, output)
    assert not torch.allclose(features.taps[0].outputs[0], features.patches[0])


@torch.no_grad()
def test_taps_by_place_from_either_end_are_the_same_and_leave_no_hooks(backbone):
    tower = backbone.part(backbone.family.vision)
    hooks = {id(hook) for module in tower.modules() for hook in module._forward_hooks.values()}
    taps = backbone.tower(IMAGES[:1], layers=(0, 2, -1, -3)).taps
    for one, other in ((2, -1), (0, -3)):
        assert torch.equal(taps[one].outputs[0], taps[other].outputs[0])
        assert torch.equal(taps[one].queries[0], taps[other].queries[0])
    assert {id(hook) for module in tower.modules() for hook in module._forward_hooks.values()} == hooks


@torch.no_grad()
def test_attention_of_the_class_token_is_that_of_the_tower(backbone):
    """Against the attention weights that the tower itself gives when it keeps them."""
    tower = backbone.part(backbone.family.vision)
    features = backbone.tower(IMAGES[:2], layers=(1,))
    was = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    pixels = backbone.read_images(IMAGES[:2])["pixel_values"]
    if pixels.ndim == 5:  # tiles, padded to the most that an image has
        pixels = torch.cat([own[: len(tiles)] for own, tiles in zip(pixels, features.patches, strict=True)])
    whole = tower(pixels, output_attentions=True).attentions[1]
    tower.set_attn_implementation(was)
    have = torch.cat([own.reshape(-1, own.shape[-1]) for own in features.class_attention(1)])
    torch.testing.assert_close(have, whole[:, :, 0, 1:].mean(dim=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(RequestError, match="Name the layer in tower"):
        features.class_attention(0)


def test_a_layer_outside_the_tower_is_refused(backbone):
    with pytest.raises(RequestError, match=r"Layers \[3\] of a tower with 3 layers"):
        backbone.tower(IMAGES[:1], layers=(0, 3))


def test_vision_tokens_carry_gradient_to_the_projector(tiny):
    (tokens,) = tiny.project(tiny.tower(IMAGES[:1]))
    tokens.sum().backward()
    assert tiny.part(tiny.family.projector).linear_2.weight.grad.abs().sum() > 0
    tiny.model.zero_grad(set_to_none=True)


@torch.no_grad()
def test_grid_times_tokens_of_the_square(tiny):
    features = tiny.tower(IMAGES[:2])
    assert features.grids == [(4, 4), (4, 4)]
    assert [tokens.shape for tokens in tiny.project(features)] == [(16, 32), (16, 32)]


@torch.no_grad()
def test_tiles_follow_the_shape_of_the_image(llava_next):
    """Tower of 56 px in patches of 14: 16 tokens of the whole, then rows of tiles with a newline each."""
    features = llava_next.tower(IMAGES)
    expected = {
        (56, 56): (4, 4),  # 1 x 2 tiles: no larger grid shows more of it
        (50, 160): (4, 12),  # 1 x 3 tiles, fits but for less than a row
        (160, 50): (12, 4),
        (100, 100): (8, 8),  # 2 x 2 tiles
        (61, 97): (6, 8),  # 2 x 2 tiles of which 112 * 61 / 97 = 70 px are image: 5.03 rows, and margins are even
    }
    assert dict(zip(SIZES, features.grids, strict=True)) == expected
    counts = [16 + rows * (columns + 1) for rows, columns in expected.values()]
    assert [len(tokens) for tokens in llava_next.project(features)] == counts


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
