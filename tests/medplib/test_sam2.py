"""A PixelVLM that draws with SAM 2: pictures remembered at three resolutions, one head that trains and that answers."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.adapters.guards import GradientReach
from lightbox.backbones.loading import load
from lightbox.backbones.segmenter import load_segmenter
from lightbox.paper.picture_memory import PictureMemory
from lightbox.paper.pixel_rows import add_tags
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.pixel_vlm_parts import load_parts, parts_of, save_parts
from lightbox.testing.tiny_sam2 import WIDTH, save_sam2
from medplib.assembly import add_experts
from medplib.objective import STAGE_WEIGHTS
from medplib.stages import train_stage
from medplib.train import pixel_step


@pytest.fixture(scope="module", params=["image", "video"])
def sam2(request, tmp_path_factory):
    return str(save_sam2(tmp_path_factory.mktemp("sam2"), is_video=request.param == "video"))


@pytest.fixture
def model(folders, sam2):
    backbone = load(str(folders / "tiny"))
    add_tags(backbone)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PixelVLM(backbone, load_segmenter(sam2)).eval()


def gradients_of_one_step(model, items, stage):
    """Gradients of all tensors that a stage trains, by name."""
    train_stage(model, stage, model.backbone.family)
    reach = GradientReach(model)
    loss, count, _ = pixel_step(model, model.prepare(items), STAGE_WEIGHTS[stage])
    (loss / count).backward()
    reach.observe(1)
    reach.observe(2)  # refuses what has none
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("is_training", [False, True])
def test_a_step_of_grounding_reaches_each_tensor_that_it_trains(model, items, is_training):
    gradients = gradients_of_one_step(model.train(is_training), items, "grounding")
    decoder = {name.removeprefix("sam.mask_decoder.").split(".")[0] for name in gradients if name.startswith("sam.")}
    assert decoder == {
        *("iou_token", "mask_tokens", "obj_score_token", "transformer", "output_hypernetworks_mlps"),
        *("upscale_conv1", "upscale_conv2", "upscale_layer_norm"),
    }
    assert {name.partition(".")[0] for name in gradients} == {"vlm", "seg_projector", "sam"}
    still = {name for name, p in model.sam.mask_decoder.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in still} == {
        *("iou_prediction_head", "pred_obj_score_head", "conv_s0", "conv_s1", "output_hypernetworks_mlps"),
    }


def test_what_is_left_out_has_no_part_in_the_loss_of_one_mask(model, items):
    model.sam.requires_grad_(True)
    loss, _, _ = pixel_step(model, model.prepare(items), STAGE_WEIGHTS["grounding"])
    loss.backward()
    of_decoder = dict(model.sam.mask_decoder.named_parameters())
    idle = {name for name, p in of_decoder.items() if p.grad is None or not p.grad.count_nonzero()}
    train_stage(model, "grounding", model.backbone.family)
    left_out = {name for name, p in of_decoder.items() if not p.requires_grad}
    assert {name for name in idle ^ left_out if not name.endswith("k_proj.bias")} == set()  # softmax undoes those


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["joint", "mixture"])
def test_other_stages_that_draw_reach_each_tensor_of_the_decoder(model, items, stage):
    if stage == "mixture":
        source = copy.deepcopy(model.backbone.core)
        add_experts(model.backbone.core, {"grounding": source, "vl": source}, layers="model.language_model.layers")
    train_stage(model, stage, model.backbone.family)
    loss, _, _ = pixel_step(model, model.prepare(items), STAGE_WEIGHTS[stage])
    loss.backward()
    decoder = {name: p.grad for name, p in model.sam.mask_decoder.named_parameters() if p.requires_grad}
    assert "upscale_conv1.weight" in decoder
    assert all(grad.count_nonzero() for name, grad in decoder.items() if not name.endswith("k_proj.bias"))


@pytest.mark.slow
def test_an_answer_has_masks_of_its_picture_from_the_head_that_is_trained(model, items, monkeypatch, said):
    monkeypatch.setattr(model.backbone, "generate", said(model, items))
    answers = model.answer(items, max_new_tokens=8)
    assert [answer.mask().shape for answer in answers] == [(48, 64), (80, 40), (80, 40)]
    assert [len(answer.masks) for answer in answers] == [2, 0, 1]
    drawn = [torch.from_numpy(mask.logits) for answer in answers for mask in answer.masks]
    with torch.no_grad():
        model.train()  # where SAM 2 itself never leaves its first head
        trained = model(model.prepare(items)).mask_logits
    for own, other in zip(drawn, trained, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)
    assert not torch.allclose(drawn[0], drawn[1])


def test_a_picture_is_remembered_at_all_its_resolutions(model):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for size in ((48, 64), (80, 40), (64, 64))]
    memory, passes = PictureMemory(model.segmenter), []
    model.sam.vision_encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    memory.embed(pictures)
    own = memory.embed([pictures[2], pictures[0]])
    assert len(passes) == 3
    whole = model.segmenter.embed([pictures[2], pictures[0]])
    assert (own.image_hw, own.frame_hw) == (whole.image_hw, whole.frame_hw)
    assert [tuple(features.shape) for features in own.finer] == [(2, WIDTH // 4, 16, 16), (2, WIDTH // 8, 32, 32)]
    for ours, theirs in zip((own.features, *own.finer), (whole.features, *whole.finer), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert memory.n_bytes == sum(model.segmenter.embed([picture]).nbytes for picture in pictures)


@pytest.mark.slow
def test_saved_parts_hold_the_decoder(model, items, tmp_path, folders, sam2):
    with torch.no_grad():
        model.sam.mask_decoder.upscale_conv1.weight.add_(0.1)
        expected = model(model.prepare(items)).mask_logits
    save_parts(tmp_path, model)
    backbone = load(str(folders / "tiny"))
    add_tags(backbone)
    again = load_parts(tmp_path, PixelVLM(backbone, load_segmenter(sam2)).eval())
    assert parts_of(again).keys() == parts_of(model).keys()
    with torch.no_grad():
        # the embeddings of the tags are drawn anew, and no part of these
        again.backbone.model.load_state_dict(model.backbone.model.state_dict())
        masks = again(again.prepare(items)).mask_logits
    assert all(torch.equal(one, other) for one, other in zip(masks, expected, strict=True))
