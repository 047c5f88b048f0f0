"""Load: dtype, device, placement, what the file lacks, hub ids, digests."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lightbox.backbones import weights
from lightbox.backbones.families import FAMILIES
from lightbox.backbones.loading import CLASSES, load
from lightbox.errors import RequestError
from lightbox.testing.tiny_models import save_llava, save_t5

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def rewrite(folder, change):
    """Change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_family_has_a_class():
    assert set(CLASSES) == {family.name for family in FAMILIES}


def test_the_shipped_llava_loads_by_its_name_and_answers():
    backbone = load("tiny/llava")
    size = backbone.core.config.vision_config.image_size
    answers = backbone.answer([Image.new("L", (size, size), 99)], ["Is there a nodule?"], max_new_tokens=8)
    assert answers[0]


def test_a_loaded_model_says_what_it_is(folder):
    backbone = load(str(folder))
    assert not backbone.model.training
    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
    assert (backbone.name, backbone.quant, backbone.dtype) == (str(folder), "none", torch.float32)
    assert backbone.digest == weights.digest_of(str(folder))
    assert backbone.attention.name == "sdpa"
    assert backbone.core.config._attn_implementation == "sdpa"
    assert backbone.context_tokens == 256
    assert backbone.device == torch.device("cpu")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dtype_is_what_was_asked_whatever_the_file_holds(copy, stored, dtype):
    def change(tensors):
        tensors.update({name: tensor.to(stored) for name, tensor in tensors.items()})

    rewrite(copy, change)
    config = json.loads((copy / "config.json").read_text())
    config["dtype"] = str(stored).removeprefix("torch.")
    (copy / "config.json").write_text(json.dumps(config))
    model = load(str(copy), dtype=dtype).model
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}


def test_a_missing_tensor_is_named(copy):
    rewrite(copy, lambda tensors: tensors.pop("multi_modal_projector.linear_1.weight"))
    with pytest.raises(RequestError, match=r"missing: model\.multi_modal_projector\.linear_1\.weight"):
        load(str(copy))


def test_a_tensor_of_another_shape_is_named(copy):
    def change(tensors):
        tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(5)

    rewrite(copy, change)
    with pytest.raises(RequestError, match=r"of another shape: .*multi_modal_projector\.linear_1\.bias"):
        load(str(copy))


def test_a_tensor_that_is_not_read_is_reported(copy, caplog):
    rewrite(copy, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
    load(str(copy))
    assert "1 tensors of its file are not read, such as model.extra.weight" in caplog.text


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path):
    """Its ids are seen before loading where they stand in tokenizer.json; here they are in the vocabulary itself."""
    folder = save_t5(tmp_path, ["left"])
    other = save_t5(tmp_path / "other", [f"word{i}" for i in range(30)])
    AutoTokenizer.from_pretrained(other).save_pretrained(folder)
    with pytest.raises(RequestError, match="A token without an embedding"):
        load(str(folder))


def test_a_hub_id_without_network_is_refused_with_what_to_do():
    with pytest.raises(RequestError, match="Fetch the repository into a folder and set that folder"):
        load("owner/model", COMMIT)


def test_a_chat_template_is_part_of_the_digest(copy):
    before = weights.digest_of(str(copy))
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert weights.digest_of(str(copy)) != before


def test_unknown_device_and_dtype_are_refused(folder):
    with pytest.raises(RequestError, match="The device is 'tpu'"):
        load(str(folder), device="tpu")
    with pytest.raises(RequestError, match="dtype is 'fp64'"):
        load(str(folder), dtype="fp64")


@pytest.mark.skipif(torch.cuda.is_available(), reason="refuses what is absent here")
def test_absent_device_is_refused(folder):
    with pytest.raises(RequestError, match="torch finds no CUDA device"):
        load(str(folder), device="cuda")


def test_attention_is_what_was_asked(folder):
    backbone = load(str(folder), attention="eager")
    assert backbone.attention.reason == "as requested"
    for part in (backbone.family.language, backbone.family.vision):
        assert backbone.part(part).config._attn_implementation == "eager"


def test_a_tokenizer_without_pad_token_pads_with_the_end_token(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    backbone = load(str(copy))
    batch = backbone.prepare(None, ["a", "abc"], ["x", "y"], max_tokens=100)
    assert batch.inputs["input_ids"][0, -1] == backbone.end_id
    assert batch.inputs["attention_mask"][0, -2:].tolist() == [0, 0]
    assert (batch.labels[0] == backbone.end_id).sum() == 1


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_there_as_a_whole(folder):
    backbone = load(str(folder), dtype="bf16", device="cuda")
    assert {parameter.device.type for parameter in backbone.model.parameters()} == {"cuda"}
    batch = backbone.prepare(None, ["a"], ["x"], max_tokens=100).to(backbone.device)
    assert torch.isfinite(backbone.loss(batch)[0])
    assert len(backbone.answer(None, ["a", "b"], max_new_tokens=3)) == 2
