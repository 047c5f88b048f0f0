"""SAM 2 in miniature: masks of plain transformers, the image part of a video model, images that are stretched."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Sam2Model, Sam2Processor

from lightbox.backbones.segmenter import load_segmenter
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError
from lightbox.pretrain.sam import make_processor, make_sam
from lightbox.testing.tiny_sam2 import SIDE, WIDTH, save_sam2

RANDOM = np.random.default_rng(0)
IMAGES = [
    Image.fromarray(RANDOM.integers(0, 256, (60, 100, 3), dtype=np.uint8)),
    Image.fromarray(RANDOM.integers(0, 256, (150, 90), dtype=np.uint8)),  # grey
    Image.fromarray(RANDOM.integers(0, 256, (128, 128, 3), dtype=np.uint8)),
]
POINTS = torch.tensor([[[0.25, 0.5], [0.75, 0.5]], [[0.5, 0.125], [0.0, 1.0]], [[0.5, 0.5], [0.25, 0.25]]])
LABELS = torch.tensor([[1, 0], [1, -1], [0, 1]])
BOXES = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.125, 0.75, 0.5], [0.5, 0.25, 1.0, 0.875]])
COARSE = torch.from_numpy(RANDOM.normal(size=(3, SIDE // 4, SIDE // 4)).astype(np.float32)) * 4
PROMPTS = {
    "points": {"points": POINTS, "labels": LABELS},
    "boxes": {"boxes": BOXES},
    "points and boxes": {"points": POINTS, "labels": LABELS, "boxes": BOXES},
    "masks": {"masks": COARSE},
    "boxes and masks": {"boxes": BOXES, "masks": COARSE},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An image model, and a video model of other weights, as SAM 2 is published."""
    root = tmp_path_factory.mktemp("sam2")
    return {"image": save_sam2(root / "image"), "video": save_sam2(root / "video", is_video=True, seed=1)}


@pytest.fixture(scope="module")
def segmenter(folders):
    return load_segmenter(str(folders["image"]))


@pytest.fixture(scope="module")
def embeddings(segmenter):
    return segmenter.embed(IMAGES)


@pytest.fixture(scope="module", params=["image", "video"])
def plain(request, folders):
    """Our segmenter of a folder, and model and processor of transformers alone."""
    folder = folders[request.param]
    with quiet_loading():
        model = Sam2Model.from_pretrained(folder).eval()
    return load_segmenter(str(folder)), model, Sam2Processor.from_pretrained(folders["image"])


def plain_masks(model, processor, image, prompts, *, several):
    """Logits at the size of the image, of the square, estimates of overlap and of an object, for one image."""
    inputs = {}
    size = torch.tensor(image.size, dtype=torch.float64)
    if "points" in prompts:
        inputs["input_points"] = (prompts["points"] * size)[None].tolist()
        inputs["input_labels"] = prompts["labels"][None].tolist()
    if "boxes" in prompts:
        inputs["input_boxes"] = (prompts["boxes"] * size.repeat(2))[None].tolist()
    inputs = processor(image.convert("RGB"), return_tensors="pt", **inputs)
    sizes = inputs.pop("original_sizes")
    coarse = {"input_masks": prompts["masks"][None]} if "masks" in prompts else {}
    output = model(**inputs, **coarse, multimask_output=several)
    masks = processor.post_process_masks(output.pred_masks, sizes, binarize=False)
    return masks[0], output.pred_masks[0], output.iou_scores[0], output.object_score_logits[0, :, 0]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("several", [False, True])
def test_masks_are_those_of_plain_transformers(kind, several, plain):
    """Three prompts on each image at once, where transformers takes one coarse mask at a time."""
    segmenter, *theirs = plain
    rows = [slice(k, k + 1) for k in range(3)] if "masks" in PROMPTS[kind] else [slice(3)]
    for image in IMAGES:
        embeddings = segmenter.embed([image])
        masks = segmenter.decode(embeddings, *segmenter.encode_prompts(embeddings, **PROMPTS[kind]), several=several)
        parts = [{name: value[some] for name, value in PROMPTS[kind].items()} for some in rows]
        expected = [plain_masks(*theirs, image, part, several=several) for part in parts]
        ours = (torch.stack(masks.logits), masks.low_res_logits, masks.iou, masks.object_logit)
        for own, other in zip(ours, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(own, torch.cat(other), atol=1e-5, rtol=0)
        assert masks.logits[0].shape == (3 if several else 1, image.height, image.width)
        assert masks.logits[0].std() > 0.02
        assert (masks.logits[0] - masks.logits[1]).abs().max() > 0.02  # prompts matter


@torch.no_grad()
def test_the_first_head_draws_where_no_other_may_take_over(segmenter, embeddings):
    """Of transformers alone: one mask in training mode is the first head's; in evaluation, the likeliest."""
    sparse, dense = segmenter.encode_prompts(embeddings, boxes=BOXES, image_of=[0, 1, 2])
    first = segmenter.decode(embeddings, sparse, dense, image_of=[0, 1, 2], fallback=False)
    likeliest = segmenter.decode(embeddings, sparse, dense, image_of=[0, 1, 2])
    three = segmenter.decode(embeddings, sparse, dense, image_of=[0, 1, 2], several=True)
    segmenter.model.train()
    try:
        trained = segmenter.decode(embeddings, sparse, dense, image_of=[0, 1, 2])
    finally:
        segmenter.model.eval()
    torch.testing.assert_close(first.low_res_logits, trained.low_res_logits, atol=1e-5, rtol=0)
    is_first = torch.isclose(first.iou, likeliest.iou)[:, 0]
    assert not is_first.all()  # random masks are vague
    best = three.iou.max(dim=1, keepdim=True).values
    torch.testing.assert_close(likeliest.iou[~is_first], best[~is_first], atol=1e-5, rtol=0)
    assert segmenter.model.mask_decoder.dynamic_multimask_via_stability


@torch.no_grad()
def test_one_embedding_serves_prompts_as_separate_runs_do(segmenter, embeddings):
    """Prompts of three images in one call, two of them on the same image, in any order."""
    image_of = [2, 0, 2]
    prompts = segmenter.encode_prompts(embeddings, boxes=BOXES, image_of=image_of)
    together = segmenter.decode(embeddings, *prompts, image_of=image_of)
    for row, image in enumerate(image_of):
        alone = segmenter.embed([IMAGES[image]])
        one = segmenter.decode(alone, *segmenter.encode_prompts(alone, boxes=BOXES[row : row + 1]))
        torch.testing.assert_close(together.logits[row], one.logits[0], atol=1e-5, rtol=0)
        assert together.logits[row].shape == (1, IMAGES[image].height, IMAGES[image].width)
        torch.testing.assert_close(together.object_logit[row], one.object_logit[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_given_embeddings_are_prompts_like_others(segmenter, embeddings):
    sparse, dense = segmenter.encode_prompts(embeddings, boxes=BOXES, image_of=[0, 1, 2])
    assert (sparse.shape, dense.shape) == ((3, 3, WIDTH), (3, WIDTH, 8, 8))
    both = segmenter.decode(embeddings, sparse, dense, image_of=[0, 1, 2])
    assert torch.equal(segmenter.decode(embeddings, sparse, image_of=[0, 1, 2]).iou, both.iou)  # "no mask" is learned
    own = torch.cat([sparse, torch.ones(3, 1, WIDTH)], dim=1)
    assert not torch.allclose(segmenter.decode(embeddings, own, image_of=[0, 1, 2]).iou, both.iou)
    only_dense = segmenter.decode(embeddings, None, dense + 1, image_of=[0, 1, 2])
    assert only_dense.iou.shape == (3, 1)
    assert not torch.allclose(only_dense.iou, both.iou)


@torch.no_grad()
@pytest.mark.parametrize("height_width", [(60, 100), (200, 90)])
def test_a_place_is_the_same_in_image_square_and_prompt(height_width, segmenter):
    """A bright rectangle: prepared, shrunk to the size of logits, and put back, it lies where it was."""
    height, width = height_width
    box = torch.tensor([[0.5, 0.2, 0.9, 0.4]])
    is_bright = np.zeros(height_width, dtype=bool)
    is_bright[height // 5 : height * 2 // 5, width // 2 : width * 9 // 10] = True
    image = Image.fromarray((is_bright * 255).astype(np.uint8)).convert("RGB")
    pixel_values, image_hw, frame_hw = segmenter.layout.pixels([image])
    assert (image_hw, frame_hw) == ([[height, width]], [[SIDE, SIDE]])
    # a little above nothing, so that the middle between dark and bright is 0
    square = torch.nn.functional.avg_pool2d(pixel_values[:, :1] - pixel_values[:, :1].mean(), 4)
    square = square - (square.amax() + square.amin()) / 2
    (back,) = segmenter.layout.to_images(square[:, None], image_hw, frame_hw)
    inside = back[0, 0].numpy() > 0
    assert inside.shape == height_width
    assert (inside & is_bright).sum() / (inside | is_bright).sum() > 0.9
    # and a box at these fractions is the prompt at that rectangle of the square
    sparse, _ = segmenter.encode_prompts(segmenter.embed([image]), boxes=box)
    expected, _ = segmenter.model.prompt_encoder(None, None, (box * SIDE)[:, None], None)
    torch.testing.assert_close(sparse, expected[:, 0], atol=1e-5, rtol=0)


def test_gradients_reach_the_decoder_and_a_given_embedding_and_the_encoder_only_if_asked(folders):
    segmenter = load_segmenter(str(folders["image"]))
    encoder, decoder = segmenter.model.vision_encoder, segmenter.model.mask_decoder
    for with_grad in (False, True):
        state = torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
        embeddings = segmenter.embed(IMAGES[:2], with_grad=with_grad)
        masks = segmenter.decode(embeddings, state, image_of=[0, 1], fallback=False).logits
        torch.stack([mask.square().mean() for mask in masks]).sum().backward()
        assert state.grad.abs().amax(dim=-1).min() > 0
        assert decoder.upscale_conv1.weight.grad.abs().max() > 0
        # what the decoder does to fine features, where they are embedded
        of_images = [encoder.backbone.patch_embed.projection.weight, decoder.conv_s0.weight, decoder.conv_s1.weight]
        assert [weight.grad is not None for weight in of_images] == [with_grad] * 3
    assert all(weight.grad.abs().max() > 0 for weight in of_images)
    assert segmenter.model.no_memory_embedding.grad.abs().max() > 0


def test_embeddings_of_another_model_are_refused(segmenter, embeddings, tmp_path):
    make_sam().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    sam = load_segmenter(str(tmp_path))
    prompt = torch.zeros(1, 1, sam.embed(IMAGES).features.shape[1])
    with pytest.raises(RequestError, match=r"embedded at 1 resolutions.*Sam2Model reads 3.*Embed them with"):
        segmenter.decode(sam.embed(IMAGES), prompt, image_of=[0])
    with pytest.raises(RequestError, match=r"embedded at 3 resolutions.*SamModel reads 1"):
        sam.decode(embeddings, torch.zeros(1, 1, WIDTH), image_of=[0])
    with pytest.raises(RequestError, match=r"sparse is of shape \(1, 1, 48\).*\(1, any, 32\)"):
        segmenter.decode(embeddings, torch.zeros(1, 1, 48), image_of=[0])
    with pytest.raises(RequestError, match="No prompt: sparse and dense"):
        segmenter.decode(embeddings, None)


def test_folders_that_are_no_whole_sam_2_are_refused(folders, tmp_path):
    copy = shutil.copytree(folders["video"], tmp_path / "video")
    tensors = load_file(copy / "model.safetensors")
    lacking = {name: tensor for name, tensor in tensors.items() if name != "mask_decoder.conv_s0.weight"}
    save_file(lacking, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"a sam2_video, read as Sam2Model.*missing: mask_decoder.conv_s0.weight"):
        load_segmenter(str(copy))
    memory = {name: tensor for name, tensor in tensors.items() if not name.startswith("memory_")}
    save_file(memory, copy / "model.safetensors", {"format": "pt"})
    load_segmenter(str(copy))  # of which it reads nothing
    facts = json.loads((copy / "processor_config.json").read_text())
    facts["image_processor"]["size"] = {"height": 64, "width": 64}
    (copy / "processor_config.json").write_text(json.dumps(facts))
    with pytest.raises(RequestError, match=r"made 64 x 64 px.*It reads 128 x 128.*published with the weights"):
        load_segmenter(str(copy))
