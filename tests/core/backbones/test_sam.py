"""SAM and SAM 2 in miniature: load, train on phantom masks, evaluate, predict; geometry of boxes and masks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Sam2VideoConfig, Sam2VideoModel

from lightbox.backbones import sam
from lightbox.backbones.mask_batch import dice_scores
from lightbox.backbones.published import SEGMENTERS
from lightbox.backbones.sam import load_segmenter
from lightbox.config import OptimConfig, RunConfig
from lightbox.errors import RequestError
from lightbox.phantom import Knobs, draw_cases
from lightbox.records import box_from_mask
from lightbox.testing.shrunk import save_shrunk, shrunk_config
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit


@pytest.fixture(scope="module", params=SEGMENTERS)
def folder(request, tmp_path_factory):
    return save_shrunk(request.param, tmp_path_factory.mktemp("sam"))


@pytest.fixture
def segmenter(folder):
    return load_segmenter(str(folder))


def items_of(count):
    """Images, boxes and masks of the largest findings of 24 phantoms."""
    items = [
        (Image.fromarray(case.images[0]), box_from_mask(finding.mask), finding.mask)
        for case in draw_cases(range(24), Knobs(image_px=64))
        for finding in case.findings
        if finding.present and finding.mask.any()
    ]
    items.sort(key=lambda item: -item[2].mean())
    return [list(part) for part in zip(*items[:count], strict=True)]


def test_small_segmenter_goes_through_load_train_evaluate_and_predict(segmenter, folder, tmp_path):
    images, boxes, masks = items_of(4)
    truth = [torch.from_numpy(mask) for mask in masks]
    before = dice_scores([logit > 0 for logit in segmenter.segment(images, boxes)], truth)
    start = {name: tensor.clone() for name, tensor in segmenter.model.state_dict().items()}

    def collate(indices):
        return segmenter.prepare(*([part[i] for i in indices] for part in (images, boxes, masks)))

    def evaluate(model):
        found = segmenter.with_model(model).segment(images, boxes)
        return {"val/dice_mean": float(np.mean(dice_scores([logit > 0 for logit in found], truth)))}

    history = fit(
        segmenter.model,
        lambda model, batch: segmenter.with_model(model).loss(batch),
        BatchSource(len(images), collate, batch_size=4, seed=0),
        optim=OptimConfig(lr=3e-3, max_steps=45, batch_size=4, weight_decay=0.0, schedule="constant"),
        run=RunConfig(seed=0, log_every_steps=1),
        out=tmp_path,
        evaluate=evaluate,
    )
    losses = [value for _, value in history["train/loss"]]
    assert losses[-1] < 0.6 * losses[0]
    after = history["val/dice_mean"][-1][1]
    assert after > np.mean(before) + 0.1
    moved = {name for name, tensor in segmenter.model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name, parameter in segmenter.model.named_parameters() if parameter.requires_grad}
    segmenter.model.save_pretrained(tmp_path / "saved")
    segmenter.processor.save_pretrained(tmp_path / "saved")
    again = load_segmenter(str(tmp_path / "saved"))
    for one, other in zip(again.segment(images, boxes), segmenter.segment(images, boxes), strict=True):
        assert torch.equal(one, other)
    assert again.digest != load_segmenter(str(folder)).digest


def test_only_what_the_mask_of_a_box_goes_through_is_trained(segmenter):
    trained = {name for name, parameter in segmenter.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith("mask_decoder.") for name in trained)
    segmenter.loss(segmenter.prepare(*items_of(2)))[0].backward()
    reached = {name for name, p in segmenter.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == trained


SHAPES = [(0, (40, 100)), (1, (90, 30)), (2, (64, 64))]


def test_mask_comes_at_the_size_of_its_image_whatever_the_batch(segmenter):
    images = [Image.fromarray(np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)) for k, size in SHAPES]
    boxes = [(0.1, 0.2, 0.6, 0.9), (0.3, 0.1, 0.5, 0.8), (0.0, 0.0, 1.0, 1.0)]
    together = segmenter.segment(images, boxes, batch_size=3)
    alone = segmenter.segment(images, boxes, batch_size=1)
    assert [tuple(logit.shape) for logit in together] == [size for _, size in SHAPES]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    moved = segmenter.segment(images, [boxes[1], *boxes[1:]])
    assert not torch.allclose(moved[0], together[0], atol=1e-4)
    assert torch.equal(moved[1], together[1])


def test_boxes_are_in_pixels_that_the_model_sees(segmenter):
    """A 40 x 100 image: SAM scales it to 51 x 128 and fills up below, SAM 2 stretches it to 128 x 128."""
    batch = segmenter.prepare([Image.new("L", (100, 40), 200)], [(0.25, 0.5, 0.5, 1.0)])
    height = 51 if segmenter.kind is sam.SAM else 128
    assert batch.seen_hw == [(height, 128)]
    assert batch.boxes_xyxy_px.tolist() == [[[32.0, 0.5 * height, 64.0, 1.0 * height]]]
    assert batch.pixel_values.shape == (1, 3, 128, 128)
    filled = batch.pixel_values[0, :, height:]
    assert filled.numel() == 0 or (filled == 0).all()


def test_mask_of_the_model_is_put_back_where_it_belongs(segmenter, monkeypatch):
    """A decoder that marks the left half of what it sees marks the left half of the image."""
    batch = segmenter.prepare([Image.new("L", (100, 40), 200)], [(0.25, 0.5, 0.5, 1.0)])
    small = torch.full((1, 1, 1, 32, 32), -1.0)
    small[..., :16] = 1.0

    class Output:
        pred_masks = small

    monkeypatch.setattr(segmenter, "model", lambda **_: Output)
    (logits,) = segmenter.logits(batch)
    assert logits.shape == (40, 100)
    assert (logits[:, :48] > 0).all()
    assert (logits[:, 52:] < 0).all()


def test_loss_is_dice_and_cross_entropy_by_hand(segmenter):
    batch = segmenter.prepare(*items_of(3))
    total, count, means = segmenter.loss(batch)
    wanted = []
    for logit, mask in zip(segmenter.logits(batch), batch.masks, strict=True):
        prob, truth = logit.sigmoid(), mask.float()
        dice = 1 - (2 * (prob * truth).sum() + 1e-5) / (prob.sum() + truth.sum() + 1e-5)
        wanted.append(dice + torch.nn.functional.binary_cross_entropy(prob, truth))
    torch.testing.assert_close(total, torch.stack(wanted).sum(), rtol=1e-4, atol=1e-5)
    assert count == 3
    assert 0 <= means["dice"] <= 1


def test_dice_by_hand():
    full, empty = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    half = torch.tensor([[True, True], [False, False]])
    assert dice_scores([full, empty, empty, half, half], [full, empty, full, full, ~half]) == pytest.approx(
        [1, 1, 0, 2 / 3, 0]
    )


def test_sam_2_published_for_video_gives_its_image_part(tmp_path):
    """The published SAM 2 has model_type sam2_video and tensors of a memory, which the image model leaves unread."""
    image_folder = save_shrunk("sam2-hiera-tiny", tmp_path / "image")
    image = shrunk_config("sam2-hiera-tiny").to_dict()
    parts = {
        part: {key: value for key, value in image[part].items() if key != "model_type"}
        for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    }
    small = {name: 32 for name in ("memory_attention_hidden_size", "memory_encoder_hidden_size")}
    small |= {"mask_downsampler_embed_dim": 32, "memory_fuser_embed_dim": 32, "memory_encoder_output_channels": 16}
    small |= {"memory_attention_num_layers": 1, "memory_attention_feed_forward_hidden_size": 32, "image_size": 128}
    video = Sam2VideoModel(Sam2VideoConfig(**parts, **small, memory_attention_rope_feat_sizes=[8, 8]))
    video.save_pretrained(tmp_path / "video")
    for file in image_folder.glob("*processor*"):
        (tmp_path / "video" / file.name).write_bytes(file.read_bytes())
    kept, whole = load_file(image_folder / "model.safetensors"), load_file(tmp_path / "video" / "model.safetensors")
    assert set(kept) < set(whole)
    save_file(whole | kept, tmp_path / "video" / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((tmp_path / "video" / "config.json").read_text())["model_type"] == "sam2_video"
    images, boxes, _ = items_of(2)
    one, other = (load_segmenter(str(path)).segment(images, boxes) for path in (image_folder, tmp_path / "video"))
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_sam_2_answers_with_the_mask_that_is_trained(tmp_path):
    segmenter = load_segmenter(str(save_shrunk("sam2-hiera-tiny", tmp_path)))
    images, boxes, _ = items_of(2)
    in_evaluation = segmenter.segment(images, boxes)
    segmenter.model.train()
    assert all(torch.equal(a, b) for a, b in zip(in_evaluation, segmenter.segment(images, boxes), strict=True))


# ---- what is refused


def test_counts_sizes_and_boxes_are_checked(segmenter):
    image, mask = Image.new("L", (20, 10)), np.zeros((10, 20), dtype=bool)
    with pytest.raises(RequestError, match="1 images, 2 boxes, no masks"):
        segmenter.prepare([image], [(0, 0, 1, 1)] * 2)
    with pytest.raises(RequestError, match=r"Mask 0 has shape \(20, 10\), its image \(10, 20\)"):
        segmenter.prepare([image], [(0, 0, 1, 1)], [mask.T])
    with pytest.raises(RequestError, match=r"box 1: .*x0 < x1 and y0 < y1"):
        segmenter.prepare([image] * 2, [(0, 0, 1, 1), (0.5, 0, 0.5, 1)])
    with pytest.raises(RequestError, match="Prepare it with masks"):
        segmenter.loss(segmenter.prepare([image], [(0, 0, 1, 1)]))


def test_other_model_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(RequestError, match=r"model\.segmenter is '.*', a dinov2.*sam, sam2, sam2_video"):
        load_segmenter(str(save_shrunk("dinov2-base", tmp_path)))


def test_file_without_a_tensor_is_refused(tmp_path):
    folder = save_shrunk("sam-vit-b", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="lacks 1 tensors, such as mask_decoder.iou_token.weight"):
        load_segmenter(str(folder))
