"""The finding map of a tower with a head: where its values lie, what it refuses, and pruning by it."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lightbox.errors import RequestError
from lightbox.pruning.finding_head import FILE, FindingHead, finding_map, load_head, save_head
from lightbox.pruning.pipeline import prune

SIDE, PATCH_PX, WIDTH = 6, 8, 16


@pytest.fixture
def folder(tmp_path):
    """A LLaVA of 36 tokens with its head."""
    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE * PATCH_PX, patch_size=PATCH_PX, **size),
        text_config=LlamaConfig(vocab_size=20, max_position_embeddings=128, **size),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    save_head(FindingHead(WIDTH, PATCH_PX), tmp_path)
    return tmp_path


@pytest.fixture
def headed(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder).eval()


def test_a_patch_gives_the_pixels_at_its_place():
    head = FindingHead(WIDTH, PATCH_PX)
    patches = torch.randn(1, SIDE**2, WIDTH)
    with torch.inference_mode():
        before = head(patches)
        patches[0, 2 * SIDE + 5] += torch.randn(WIDTH)
        changed = (head(patches) != before)[0].nonzero()
        row = head.pixels(head.norm(patches[0, 2 * SIDE + 5])).sigmoid()
        # one row and all of them are other matrix products, which round otherwise
        torch.testing.assert_close(head(patches)[0, 16 + 3, 40 + 1], row[3 * PATCH_PX + 1], rtol=0, atol=1e-6)
        assert row.std() > 1e-3  # so that another place would be seen
    assert changed.min(dim=0).values.tolist() == [16, 40]
    assert changed.max(dim=0).values.tolist() == [23, 47]


def test_a_head_is_read_back_and_transformers_reads_past_it(folder, headed):
    assert (folder / FILE).is_file()
    head = load_head(str(folder))
    assert (head.patch_px, head.norm.normalized_shape) == (PATCH_PX, (WIDTH,))
    assert not any(p.requires_grad for p in head.parameters())
    assert "finding" not in " ".join(headed.state_dict())


def test_the_map_is_that_of_the_head_on_the_towers_patches(folder, headed):
    pixels = torch.randn(2, 3, SIDE * PATCH_PX, SIDE * PATCH_PX)
    maps = finding_map(headed, str(folder))({"pixel_values": pixels})
    with torch.inference_mode():
        hidden = headed.model.vision_tower(pixel_values=pixels).last_hidden_state
        expected = load_head(str(folder))(hidden[:, 1:])
    assert len(maps) == 2
    assert torch.equal(torch.stack(maps), expected)
    assert all(0 <= float(own.min()) <= float(own.max()) <= 1 for own in maps)


@pytest.mark.parametrize("method", ["lesion_safe", "finding_topk"])
def test_a_model_is_pruned_by_its_own_map_and_is_itself_again_after(folder, headed, method):
    pixels = torch.randn(1, 3, SIDE * PATCH_PX, SIDE * PATCH_PX)
    inputs = {"input_ids": torch.tensor([[1, *[3] * SIDE**2, 5, 6]]), "pixel_values": pixels}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        whole = headed(**inputs).logits
        with prune(headed, method, 0.2, finding_map=finding_map(headed, str(folder))) as handle:
            out = headed.generate(**inputs, max_new_tokens=3, do_sample=False)
            assert handle.report().tokens_after == [round(0.2 * SIDE**2)]
        assert torch.equal(headed(**inputs).logits, whole)
    assert out.shape[1] > inputs["input_ids"].shape[1]


def test_weights_without_a_head_are_refused():
    with pytest.raises(RequestError, match=r"no finding_head\.safetensors beside"):
        load_head("tiny/llava")


def test_a_head_of_another_tower_is_refused(folder, headed):
    save_head(FindingHead(2 * WIDTH, PATCH_PX), folder)
    with pytest.raises(RequestError, match="The head reads width 32"):
        finding_map(headed, str(folder))


def test_another_family_is_refused(folder, qwen):
    with pytest.raises(RequestError, match=r"A finding map of a qwen2_5_vl"):
        finding_map(qwen.model, str(folder))
