"""Weights by name: places, digests, refusals; T5 and towers from folders that save_pretrained wrote."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from lightbox.backbones import weights
from lightbox.backbones.seq2seq import load_seq2seq
from lightbox.backbones.towers import FAMILIES, load_tower
from lightbox.errors import RequestError, WorkError
from lightbox.testing.tiny_models import TOWERS, save_t5, save_tower

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("t5"), ["left", "lung"])


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory):
    return save_tower(tmp_path_factory.mktemp("tower"))


def test_tiny_name_means_shared_data(tmp_path, monkeypatch, t5_folder):
    shutil.copytree(t5_folder, tmp_path / "shared_data" / "weights" / "some")
    monkeypatch.setenv("LIGHTBOX_HOME", str(tmp_path))
    assert weights.locate("tiny/some").folder == tmp_path / "shared_data" / "weights" / "some"
    with pytest.raises(RequestError, match="The tiny models here are some"):
        weights.locate("tiny/other")


@pytest.mark.parametrize("revision", ["", "main", COMMIT[:12]])
def test_hub_id_needs_a_full_revision(revision):
    with pytest.raises(RequestError, match="full commit hash"):
        weights.locate("owner/model", revision=revision)


def test_hub_id_with_revision_is_its_own_digest():
    place = weights.locate("owner/model", revision=COMMIT)
    assert (place.source, place.revision, place.folder) == ("owner/model", COMMIT, None)
    assert weights.digest_of("owner/model", revision=COMMIT) == f"hub:owner/model@{COMMIT}"


def test_name_that_is_nothing_is_refused_with_its_key():
    with pytest.raises(RequestError, match="model.tower is 'no such place'"):
        weights.locate("no such place", key="model.tower")


def test_folder_of_pickles_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(RequestError, match="lightbox data convert"):
        weights.locate(str(tmp_path))


def test_digest_changes_with_any_file_and_with_nothing_else(tmp_path, t5_folder):
    copy = shutil.copytree(t5_folder, tmp_path / "copy")
    (copy / "card.json").write_text('{"build_minutes": 27.1}')
    assert weights.digest_of(str(copy)) == weights.digest_of(str(t5_folder))
    tensors = load_file(copy / "model.safetensors")
    tensors["shared.weight"][0, 0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert weights.digest_of(str(copy)) != weights.digest_of(str(t5_folder))


def test_t5_loads_with_its_tokenizer(t5_folder):
    model, tokenizer = load_seq2seq(str(t5_folder), dropout_rate=0.25)
    assert model.config.dropout_rate == 0.25
    assert not model.training
    assert tokenizer.tokenize("Left lung?") == ["left", "lung", "?"]


def test_other_family_is_refused(tower_folder):
    with pytest.raises(RequestError, match="clip_vision_model"):
        load_seq2seq(str(tower_folder))


def test_t5_with_missing_tensor_is_refused(tmp_path, t5_folder):
    copy = shutil.copytree(t5_folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="missing: encoder.final_layer_norm.weight"):
        load_seq2seq(str(copy))


def test_tokenizer_of_another_model_is_refused(tmp_path, t5_folder):
    copy = shutil.copytree(t5_folder, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(t5_folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(RequestError, match="A token without an embedding"):
        load_seq2seq(str(copy))


@pytest.mark.parametrize("family", TOWERS)
def test_tower_gives_one_feature_a_patch(family, tmp_path):
    tower = load_tower(str(save_tower(tmp_path, family)))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    features = tower.encode(images)
    assert features.shape == (3, 64, tower.width)
    assert features.dtype == torch.float32
    assert tower.prefix_tokens == TOWERS[family][2]
    assert not any(p.requires_grad for p in tower.model.parameters())


def test_every_registered_family_is_one_of_five_kinds():
    assert {family.model_class.__name__ for family in FAMILIES.values()} == {
        "CLIPVisionModel",
        "SiglipVisionModel",
        "ViTModel",
        "Dinov2Model",
        "DetrModel",
    }


def test_features_follow_the_image_and_not_the_batch(tower_folder):
    tower = load_tower(str(tower_folder))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8))
    together, alone = tower.encode(images), tower.encode(images[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_first_patch_is_the_upper_left_one(tower_folder):
    """With position embeddings zeroed, only the patch that differs from a flat image has another embedding."""
    tower = load_tower(str(tower_folder))
    seen = {}
    tower.model.embeddings.register_forward_hook(lambda *args: seen.update(out=args[2]))
    with torch.no_grad():
        tower.model.embeddings.position_embedding.weight.zero_()
    image = torch.zeros((1, 64, 64), dtype=torch.uint8)
    image[:, :8, 8:16] = 255  # row 0, column 1
    tower.encode(image)
    patches = seen["out"][0, tower.prefix_tokens :]
    differs = (patches - patches[0]).abs().amax(dim=-1) > 1e-6
    assert differs.nonzero().flatten().tolist() == [1]


def test_image_of_another_size_is_resized(tower_folder):
    tower = load_tower(str(tower_folder))
    flat = torch.full((1, 64, 64), 90, dtype=torch.uint8)
    large = torch.full((1, 200, 200), 90, dtype=torch.uint8)
    torch.testing.assert_close(tower.encode(flat), tower.encode(large), atol=1e-5, rtol=1e-5)


def test_preprocessing_is_part_of_the_digest(tmp_path, tower_folder):
    copy = shutil.copytree(tower_folder, tmp_path / "copy")
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4] * 3}))
    assert load_tower(str(copy)).digest != load_tower(str(tower_folder)).digest


def test_whole_clip_folder_gives_its_vision_half(tmp_path):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": 20}, vision_config=small | {"image_size": 64, "patch_size": 8}
    )
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": 64,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"crop_size": 64}))
    tower = load_tower(str(tmp_path))
    image = torch.full((1, 64, 64), 90, dtype=torch.uint8)
    pixels = (image[:, None].float() / 255 - 0.5).expand(-1, 3, -1, -1) / 0.5
    expected = whole.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(tower.encode(image), expected, atol=1e-5, rtol=1e-5)


def test_tower_of_unknown_family_is_refused(t5_folder):
    with pytest.raises(RequestError, match="The towers known here are clip_vision_model"):
        load_tower(str(t5_folder))


def test_tower_with_missing_tensor_is_refused(tmp_path, tower_folder):
    copy = shutil.copytree(tower_folder, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    del tensors[next(name for name in tensors if "patch_embedding" in name)]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"read as CLIPVisionModel.*missing: .*patch_embedding"):
        load_tower(str(copy))


def test_tiny_model_with_a_damaged_file_is_refused_by_name(tmp_path, monkeypatch, t5_folder):
    folder = tmp_path / "shared_data" / "weights" / "t5"
    shutil.copytree(t5_folder, folder)
    monkeypatch.setattr(weights, "shared_data", lambda: tmp_path / "shared_data")
    digests = {"model.safetensors": weights.digest_of_file(folder / "model.safetensors")}
    (folder / "card.json").write_text(json.dumps({"sha256": digests}))
    weights.locate("tiny/t5")
    data = bytearray((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").write_bytes(bytes([*data[:-1], data[-1] ^ 1]) + b"\0")
    with pytest.raises(WorkError, match=r"model\.safetensors has digest"):
        weights.locate("tiny/t5")
