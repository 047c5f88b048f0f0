"""SAM in miniature: masks of plain transformers, prompts that share an embedding, gradients, refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from lightbox.backbones.segmenter import load_segmenter
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError
from lightbox.testing.tiny_models import save_tower

RANDOM = np.random.default_rng(0)
IMAGES = [
    Image.fromarray(RANDOM.integers(0, 256, (60, 100, 3), dtype=np.uint8)),  # shrunk, and filled up below
    Image.fromarray(RANDOM.integers(0, 256, (150, 90), dtype=np.uint8)),  # grey; filled up at the right
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
]
POINTS = torch.tensor([[[0.25, 0.5], [0.75, 0.5]], [[0.5, 0.125], [0.0, 1.0]], [[0.5, 0.5], [0.25, 0.25]]])
LABELS = torch.tensor([[1, 0], [1, -1], [0, 1]])
BOXES = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.125, 0.75, 0.5], [0.5, 0.25, 1.0, 0.875]])
COARSE = torch.from_numpy(RANDOM.normal(size=(3, 32, 32)).astype(np.float32)) * 4
PROMPTS = {
    "points": {"points": POINTS, "labels": LABELS},
    "boxes": {"boxes": BOXES},
    "points and boxes": {"points": POINTS, "labels": LABELS, "boxes": BOXES},
    "masks": {"masks": COARSE},
    "boxes and masks": {"boxes": BOXES, "masks": COARSE},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random SAM of 128 px and width 32, whose weights are spread so that masks follow prompts and images."""
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 32}
    vision |= {"image_size": 128, "window_size": 4, "num_pos_feats": 16, "global_attn_indexes": [1], "scale": 1.0}
    prompts = {"hidden_size": 32, "image_size": 128}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32}
    images = SamImageProcessor(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    folder = tmp_path_factory.mktemp("sam")
    with torch.random.fork_rng(), quiet_loading():
        torch.manual_seed(0)
        config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
        model = SamModel(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if parameter.ndim > 2 else parameter.shape[-1]
                torch.nn.init.normal_(parameter, std=fan_in**-0.5)
        model.save_pretrained(folder)
        SamProcessor(images).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(folder):
    return load_segmenter(str(folder))


@pytest.fixture(scope="module")
def embeddings(segmenter):
    return segmenter.embed(IMAGES)


def plain_masks(model, processor, image, prompts, *, several):
    """Logits at the size of the image, low-resolution logits and IoU of transformers alone, for one image."""
    inputs = {}
    size = torch.tensor(image.size, dtype=torch.float64)
    if "points" in prompts:
        inputs["input_points"] = (prompts["points"] * size)[None].tolist()
        inputs["input_labels"] = prompts["labels"][None].tolist()
    if "boxes" in prompts:
        inputs["input_boxes"] = (prompts["boxes"] * size.repeat(2))[None].tolist()
    inputs = processor(image.convert("RGB"), return_tensors="pt", **inputs)
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    coarse = {"input_masks": prompts["masks"][None]} if "masks" in prompts else {}
    output = model(**inputs, **coarse, multimask_output=several)
    masks = processor.post_process_masks(output.pred_masks, *sizes, binarize=False)
    return masks[0], output.pred_masks[0], output.iou_scores[0]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("several", [False, True])
def test_masks_are_those_of_plain_transformers(kind, several, folder, segmenter):
    """Three prompts on each image at once; SamModel takes as many points and boxes, and one mask at a time."""
    plain = SamModel.from_pretrained(folder).eval(), SamProcessor.from_pretrained(folder)
    rows = [slice(k, k + 1) for k in range(3)] if "masks" in PROMPTS[kind] else [slice(3)]
    for image in IMAGES:
        embeddings = segmenter.embed([image])
        masks = segmenter.decode(embeddings, *segmenter.encode_prompts(embeddings, **PROMPTS[kind]), several=several)
        parts = [{name: value[some] for name, value in PROMPTS[kind].items()} for some in rows]
        expected = [plain_masks(*plain, image, part, several=several) for part in parts]
        for ours, theirs in zip(
            (torch.stack(masks.logits), masks.low_res_logits, masks.iou), zip(*expected, strict=True), strict=True
        ):
            torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-5, rtol=0)
        assert masks.logits[0].shape == (3 if several else 1, image.height, image.width)
        assert masks.logits[0].std() > 0.02
        assert (masks.logits[0] - masks.logits[1]).abs().max() > 0.02  # prompts matter


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
        torch.testing.assert_close(together.iou[row], one.iou[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_given_embeddings_are_prompts_like_others(segmenter, embeddings):
    """What `encode_prompts` gives may come from elsewhere, and a caller's own embedding joins it along s."""
    sparse, dense = segmenter.encode_prompts(embeddings, boxes=BOXES, image_of=[0, 1, 2])
    assert (sparse.shape, dense.shape) == ((3, 2, 32), (3, 32, 8, 8))
    both = segmenter.decode(embeddings, sparse, dense, image_of=[0, 1, 2])
    assert torch.equal(segmenter.decode(embeddings, sparse, image_of=[0, 1, 2]).iou, both.iou)  # "no mask" is learned
    own = torch.cat([sparse, torch.ones(3, 1, 32)], dim=1)
    assert not torch.allclose(segmenter.decode(embeddings, own, image_of=[0, 1, 2]).iou, both.iou)
    only_dense = segmenter.decode(embeddings, None, dense + 1, image_of=[0, 1, 2])
    assert not torch.allclose(only_dense.iou, both.iou)


def test_gradients_reach_the_decoder_and_a_given_embedding_and_the_encoder_only_if_asked(folder):
    segmenter = load_segmenter(str(folder))
    for with_grad in (False, True):
        state = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        embeddings = segmenter.embed(IMAGES[:2], with_grad=with_grad)
        torch.stack(
            [mask.mean() for mask in segmenter.decode(embeddings, state, image_of=[0, 1]).logits]
        ).sum().backward()
        assert state.grad.abs().amax(dim=-1).min() > 0
        assert segmenter.model.mask_decoder.upscale_conv1.weight.grad.abs().max() > 0
        first = segmenter.model.vision_encoder.patch_embed.projection.weight.grad
        assert (first is not None) == with_grad
    assert first.abs().max() > 0
    assert segmenter.model.shared_image_embedding.positional_embedding.grad is None


ONE = {"image_of": [0, 0, 0]}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "No prompt: points and labels and boxes and masks"),
        ({"boxes": BOXES[:0]}, "No prompt"),
        ({"boxes": BOXES * 1.5} | ONE, r"boxes, row 0.*fractions of the image"),
        ({"boxes": BOXES[:, [2, 1, 0, 3]]} | ONE, r"boxes, row 0.*x0 < x1"),
        ({"points": POINTS * 100, "labels": LABELS} | ONE, r"points holds 25.0.*outside the image.*fractions"),
        ({"points": POINTS * torch.nan, "labels": LABELS} | ONE, r"points holds nan.*outside the image"),
        ({"points": POINTS, "labels": LABELS[:, :1]} | ONE, r"labels is of shape \(3, 1\).*its shape is \(3, 2\)"),
        ({"points": POINTS} | ONE, r"points is of shape \(3, 2, 2\), labels is None.*Each point has a label"),
        ({"points": POINTS, "labels": LABELS + 1} | ONE, "Each point has a label"),
        ({"boxes": BOXES, "masks": COARSE[:2]} | ONE, r"masks is of shape \(2, 32, 32\).*\(3, 32, 32\)"),
        ({"masks": COARSE[:, :16]} | ONE, r"masks is of shape \(3, 16, 32\).*\(3, 32, 32\)"),
        ({"boxes": BOXES}, r"image_of is None, with 3 prompts and 3 images"),
        ({"boxes": BOXES, "image_of": [0, 1, 3]}, r"image_of is \[0, 1, 3\].*from 0 to 2"),
    ],
)
def test_prompts_that_are_none_are_refused(prompts, message, segmenter, embeddings):
    with pytest.raises(RequestError, match=message):
        segmenter.encode_prompts(embeddings, **prompts)


def test_embeddings_of_another_model_are_refused(segmenter, embeddings):
    with pytest.raises(RequestError, match="No prompt: sparse and dense"):
        segmenter.decode(embeddings, None)
    with pytest.raises(RequestError, match=r"sparse is of shape \(1, 1, 48\).*\(1, any, 32\)"):
        segmenter.decode(embeddings, torch.zeros(1, 1, 48), image_of=[0])
    with pytest.raises(RequestError, match=r"dense is of shape \(1, 32, 16, 16\).*\(1, 32, 8, 8\)"):
        segmenter.decode(embeddings, torch.zeros(1, 1, 32), torch.zeros(1, 32, 16, 16), image_of=[0])


def test_images_that_no_tower_reads_are_refused(segmenter):
    with pytest.raises(RequestError, match="No images"):
        segmenter.embed([])
    with pytest.raises(RequestError, match=r"Image 1 is an image of mode 'I;16'"):
        segmenter.embed([IMAGES[0], Image.new("I;16", (64, 64))])
    with pytest.raises(RequestError, match=r"1 x 400 px"):
        segmenter.embed([Image.new("L", (1, 400))])


def test_folders_that_are_no_whole_sam_are_refused(folder, tmp_path):
    with pytest.raises(RequestError, match=r"model.segmenter is .*a clip_vision_model.*known here are sam"):
        load_segmenter(str(save_tower(tmp_path / "clip")))
    copy = shutil.copytree(folder, tmp_path / "sam")
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"read as SamModel.*missing: vision_encoder.layers.2"):
        load_segmenter(str(copy))
    next(copy.glob("*processor_config.json")).unlink()
    with pytest.raises(RequestError, match=r"model.segmenter is .*No preprocessor_config.json"):
        load_segmenter(str(copy))
