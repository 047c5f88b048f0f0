"""Towers of published models in miniature: features of plain transformers; DETR's two layouts and dilated stage."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models.resnet import Bottleneck, ResNet
from transformers import AutoConfig, AutoImageProcessor, AutoModel, DetrConfig, DetrModel, ResNetConfig

from lightbox import phantom
from lightbox.backbones import detr, towers
from lightbox.backbones.published import TOWERS
from lightbox.backbones.towers import FAMILIES, load_tower
from lightbox.errors import RequestError
from lightbox.testing.shrunk import save_shrunk
from lightbox.testing.tiny_models import save_tower

RANDOM = np.random.default_rng(0)
IMAGES = torch.from_numpy(RANDOM.integers(0, 256, (3, 64, 64), dtype=np.uint8))
PICTURES = {
    "grey": Image.fromarray(RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)),
    "colour": Image.fromarray(RANDOM.integers(0, 256, (80, 80, 3), dtype=np.uint8)),
    "wide": Image.fromarray(RANDOM.integers(0, 256, (45, 131, 3), dtype=np.uint8)),
    "high": Image.fromarray(RANDOM.integers(0, 256, (150, 70), dtype=np.uint8)),
}
OTHERS = ("clip", "vit")
"""Families without a published model in `TOWERS`: a whole CLIP's folder, and ViT."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Name of a tower -> its folder, written once."""
    folders = {}

    def write(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            folders[name] = save_tower(folder, name) if name in OTHERS else save_shrunk(name, folder)
            if name == "clip":  # a whole CLIP has this type, and its vision half the other
                _as_whole_clip(folder)
        return folders[name]

    return write


def _as_whole_clip(folder):
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "clip", "vision_config": config, "text_config": {"vocab_size": 20}}
    (folder / "config.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("name", TOWERS)
def test_published_tower_loads_and_gives_features(name, tmp_path):
    tower = load_tower(str(save_shrunk(name, tmp_path)))
    features = tower.encode(IMAGES)
    assert features.shape == (3, 100 if name.startswith("detr") else 16, 32)
    assert tower.width == 32
    assert torch.isfinite(features).all()
    assert not torch.allclose(features[0], features[1], atol=1e-4)
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())
    torch.testing.assert_close(tower.encode(IMAGES[1:]), features[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", [*TOWERS, *OTHERS])
def test_features_are_those_of_plain_transformers(name, folder_of):
    """Its own image processor and model, image by image; what is read of the output is written out here."""
    folder = folder_of(name)
    tower, processor, model = load_tower(str(folder)), AutoImageProcessor.from_pretrained(folder), _plain(name, folder)
    for kind, picture in PICTURES.items():
        # processors of ViT and DETR leave grey images with one colour, which their models do not read
        shown = picture if name not in ("vit", "detr-resnet-50", "detr-resnet-101") else picture.convert("RGB")
        expected = model(**processor(shown, return_tensors="pt")).last_hidden_state
        if name.startswith(("clip", "vit", "dinov2")):
            expected = expected[:, 1:]  # the class token
        torch.testing.assert_close(tower.encode([picture]), expected, atol=1e-5, rtol=0, msg=f"{name}, {kind}")


def _plain(name, folder):
    if name == "medsiglip-448":
        return AutoModel.from_pretrained(folder).vision_model
    if name == "clip":
        return towers.CLIPVisionModel.from_pretrained(folder)
    return AutoModel.from_pretrained(folder).eval()


def test_every_family_is_compared_with_plain_transformers(folder_of):
    assert {AutoConfig.from_pretrained(folder_of(name)).model_type for name in [*TOWERS, *OTHERS]} == set(FAMILIES)


def test_images_of_unequal_size_go_together_and_do_not_change_each_other(folder_of):
    """DETR keeps their shapes; filled up to one size as a batch, an image's features would depend on the others."""
    for name in ("clip-vit-l-336", "detr-resnet-50"):
        tower = load_tower(str(folder_of(name)))
        together = tower.encode([*PICTURES.values(), PICTURES["high"]])
        alone = torch.cat([tower.encode([picture]) for picture in [*PICTURES.values(), PICTURES["high"]]])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_tensors_are_read_as_the_pictures_they_hold(folder_of):
    tower = load_tower(str(folder_of("dinov2-base")))
    for kind in ("grey", "colour"):
        tensor = torch.from_numpy(np.array(PICTURES[kind]))
        assert torch.equal(tower.encode(tensor[None]), tower.encode([PICTURES[kind]]))
    assert not torch.allclose(tower.encode([PICTURES["colour"]]), tower.encode([PICTURES["colour"].convert("L")]))


def test_a_phantom_reaches_the_tiny_tower_as_it_is_drawn():
    """Neither resized nor cropped, and with arithmetic that published scores rest on, to the last bit."""
    cases = phantom.draw_cases(range(5_000_000, 5_000_016), phantom.Knobs(), questions_per_case=1)
    images = torch.from_numpy(np.stack([case.images[0] for case in cases]))
    tower = load_tower("tiny/tower")
    pixels = (images[:, None].float() / 255).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = tower.model(pixel_values=(pixels - 0.4) / 0.25).last_hidden_state[:, 1:]
    assert torch.equal(tower.encode(images), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "No images"),
        ([Image.new("I;16", (64, 64))], r"mode 'I;16'.*8-bit"),
        ([Image.new("L", (1, 400))], r"1 x 400 px.*over 200 times"),
        ([None], r"An image for a tower is"),
    ],
)
def test_what_no_tower_reads_is_refused(images, message, folder_of):
    with pytest.raises(RequestError, match=message):
        load_tower(str(folder_of("detr-resnet-50"))).encode(images)


def test_tower_without_its_preprocessing_is_refused(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("vit"), tmp_path / "copy")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(RequestError, match=r"model.tower is .*No preprocessor_config.json"):
        load_tower(str(folder))


def test_tower_whose_preprocessing_leaves_values_as_they_are_is_refused(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("vit"), tmp_path / "raw")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_normalize": False}))
    with pytest.raises(RequestError, match="leaves values as they are"):
        load_tower(str(folder))


def test_medsiglip_is_a_siglip_at_its_own_size(tmp_path):
    """The whole model's folder gives its vision half, which reads 448 px where its preprocessor says so."""
    folder = save_shrunk("medsiglip-448", tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "siglip"
    tower = load_tower(str(folder))
    assert type(tower.model).__name__ == "SiglipVisionModel"
    assert tower.prefix_tokens == 0
    assert tower.model.config.image_size == 56


def in_timms_names(name):
    """A tensor name of transformers' DETR as published files have it."""
    inside = re.match(r"model\.backbone\.conv_encoder\.model\.(.*)", name)
    if inside is None:
        return name
    rest = inside[1].replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    rest = re.sub(r"encoder\.stages\.(\d)\.layers\.(\d+)", lambda m: f"layer{int(m[1]) + 1}.{m[2]}", rest)
    rest = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", rest)
    rest = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", rest)
    rest = rest.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    return f"model.backbone.conv_encoder.model.{rest}"


@pytest.fixture
def both_layouts(tmp_path, monkeypatch):
    """The same DETR with transformers' names, and with timm's names and configuration."""
    ours = save_shrunk("detr-resnet-101", tmp_path / "ours")
    timms = shutil.copytree(ours, tmp_path / "timms")
    tensors = {in_timms_names(name): tensor for name, tensor in load_file(ours / "model.safetensors").items()}
    save_file(tensors, timms / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((ours / "config.json").read_text())
    resnet = config.pop("backbone_config")
    config |= {"backbone": "resnet101", "use_timm_backbone": True, "use_pretrained_backbone": True}
    (timms / "config.json").write_text(json.dumps(config))
    sizes = {key: resnet[key] for key in ("depths", "hidden_sizes", "embedding_size")}
    monkeypatch.setitem(detr.RESNETS, "resnet101", sizes)
    return ours, timms


def test_detr_reads_both_layouts_alike(both_layouts):
    ours, timms = (load_tower(str(folder)) for folder in both_layouts)
    assert "conv_encoder.model.layer1.0.conv1.weight" in " ".join(load_file(both_layouts[1] / "model.safetensors"))
    assert torch.equal(ours.encode(IMAGES), timms.encode(IMAGES))
    assert ours.digest != timms.digest


def test_detr_on_another_network_is_refused(both_layouts):
    folder = both_layouts[1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"backbone": "swin"}))
    with pytest.raises(RequestError, match=r"a DETR on 'swin'.*resnet50, resnet101"):
        load_tower(str(folder))


def test_dilation_of_the_published_dc5_is_applied(both_layouts):
    """With DC5 the last stage keeps 4 x 4 places for a 64-px image, where it has 2 x 2 without."""
    plain = load_tower(str(both_layouts[0]))
    config = json.loads((both_layouts[0] / "config.json").read_text())
    (both_layouts[0] / "config.json").write_text(json.dumps(config | {"dilation": True}))
    dilated = load_tower(str(both_layouts[0]))
    sides = []
    for tower in (plain, dilated):
        tower.model.input_projection.register_forward_hook(lambda *call: sides.append(call[2].shape[-1]))
        assert tower.encode(IMAGES).shape == (3, 100, 32)
    assert sides == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("is_dilated", [False, True])
def test_names_and_dilation_are_those_of_torchvisions_resnet(is_dilated):
    """An independent ResNet with timm's names gives the same features once its names are translated."""
    depths = [1, 2, 1, 3]
    torch.manual_seed(0)
    theirs = ResNet(Bottleneck, depths, replace_stride_with_dilation=[False, False, is_dilated]).eval()
    resnet = ResNetConfig(depths=depths, out_features=["stage4"])
    config = DetrConfig(use_timm_backbone=False, backbone_config=resnet, encoder_layers=1, decoder_layers=1)
    model = DetrModel(config).eval()
    if is_dilated:
        detr.dilate_last_stage(model)
    inner = model.backbone.model
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        long = f"conv_encoder.model.{name}"
        for pattern, replacement in detr._timm_names().items():
            long = re.sub(pattern, replacement, long)
        renamed[long.removeprefix("conv_encoder.model.")] = tensor
    left = {name for name in inner.load_state_dict(renamed, strict=False).unexpected_keys if "num_batches" not in name}
    assert left == {"fc.weight", "fc.bias"}
    assert inner.load_state_dict(renamed, strict=False).missing_keys == []
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        wanted = image
        for part in list(theirs.children())[:-2]:
            wanted = part(wanted)
        found = inner(image).feature_maps[-1]
    assert found.shape[-1] == (6 if is_dilated else 3)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_large_images_are_encoded_few_at_a_time(tmp_path, monkeypatch):
    tower = load_tower(str(save_shrunk("dinov2-base", tmp_path)))
    sizes = []
    tower.model.register_forward_pre_hook(
        lambda _, __, inputs: sizes.append(len(inputs["pixel_values"])), with_kwargs=True
    )
    whole = tower.encode(IMAGES)
    monkeypatch.setattr(towers, "PIXELS", 2 * 56**2)
    torch.testing.assert_close(tower.encode(IMAGES), whole, atol=1e-5, rtol=1e-5)
    assert sizes == [3, 2, 1]
