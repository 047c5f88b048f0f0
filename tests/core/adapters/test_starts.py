import shutil

import pytest
import torch

from lightbox.adapters import kbit, lora, starts
from lightbox.adapters.attach import attach
from lightbox.adapters.plain import dense_weight, plain_name
from lightbox.backbones.loading import load
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError

NAMES = ["llava-1.5-7b", "qwen2.5-vl-7b", "florence-2-base"]


def layers_of(model):
    return {plain_name(n): m for n, m in starts._lora_layers(model)}


@pytest.mark.slow
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_loftq_starts_from_the_best_low_rank_repair_of_each_layer(loaded, attached, name, use_rslora):
    backbone, _ = attached(name, quant="nf4", init="loftq", use_rslora=use_rslora, is_awake=False, use_fused=False)
    whole = loaded(name).core
    for path, layer in layers_of(backbone.model).items():
        wanted = whole.get_submodule(path).weight
        stored = dense_weight(layer.get_base_layer())
        repaired = stored + layer.get_delta_weight("default")
        values = torch.linalg.svdvals(wanted - stored)
        torch.testing.assert_close((wanted - repaired).norm(), values[4:].norm(), rtol=1e-3, atol=1e-5, msg=path)
        assert (wanted - repaired).norm() < 0.97 * (wanted - stored).norm()


def test_peft_s_own_loftq_would_leave_out_the_scale(loaded, attached):
    """With s = 1.5 an addition of R L in place of R L / s overshoots; the file says why it is not used."""
    backbone, _ = attached("llava-1.5-7b", quant="nf4", init="loftq", is_awake=False, use_fused=False)
    layer = layers_of(backbone.model)["model.language_model.layers.0.mlp.up_proj"]
    assert layer.scaling["default"] == 1.5
    whole = loaded("llava-1.5-7b").part("model.language_model.layers.0.mlp.up_proj").weight
    error = whole - dense_weight(layer.get_base_layer())
    addition = layer.get_delta_weight("default")
    assert (error - addition).norm() < (error - 1.5 * addition).norm()


def test_loftq_brings_logits_nearer_to_the_unquantised_model(loaded, attached, logits_of):
    whole = logits_of(loaded("llava-1.5-7b"))
    stored = logits_of(loaded("llava-1.5-7b", quant="nf4"))
    repaired = logits_of(attached("llava-1.5-7b", quant="nf4", init="loftq", r=32, is_awake=False)[0])
    assert (repaired - whole).norm() < 0.75 * (stored - whole).norm()


def test_loftq_leaves_a_projector_in_16_bit_at_its_usual_start(attached):
    backbone, _ = attached("llava-1.5-7b", quant="nf4", init="loftq", projector="lora", is_awake=False)
    layer = layers_of(backbone.model)["model.multi_modal_projector.linear_1"]
    assert not layer.lora_B["default"].weight.count_nonzero()


def test_loftq_reads_files_in_several_parts(saved, tmp_path):
    backbone = load(str(saved("llava-1.5-7b")))
    backbone.core.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    backbone.processor.save_pretrained(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    parts = load(str(tmp_path / "parts"), quant="nf4")
    attach(parts, AdapterConfig(kind="lora", quant="nf4", init="loftq", r=4, alpha=8.0))


def test_loftq_without_the_base_s_files_is_refused(saved, tmp_path):
    folder = tmp_path / "gone"
    shutil.copytree(saved("llava-1.5-7b"), folder)
    backbone = load(str(folder), quant="nf4")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"adapter.init is loftq and the base is .*gone.* none are there"):
        attach(backbone, AdapterConfig(kind="lora", quant="nf4", init="loftq"))


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("name", NAMES)
def test_eva_takes_the_main_directions_of_the_inputs_and_changes_nothing_yet(loaded, batch_of, logits_of, name, quant):
    backbone = loaded(name, quant=quant)
    backbone.core.requires_grad_(False)
    before, batch = logits_of(backbone), batch_of(backbone)
    adapter = AdapterConfig(kind="lora", quant=quant, init="eva", r=4)
    trained = attach(backbone, adapter, batches=[batch.inputs])
    layers = layers_of(trained.model)
    for layer in layers.values():
        rows = layer.lora_A["default"].weight
        assert rows.shape[0] == 4
        torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-3, rtol=0)  # directions, not random numbers
    assert torch.equal(logits_of(trained), before)


def test_eva_s_first_direction_is_the_one_that_inputs_vary_in_most(loaded, batch_of):
    backbone = loaded("llava-1.5-7b")
    batch, path = batch_of(backbone), "model.language_model.layers.0.self_attn.q_proj"
    seen = []
    handle = backbone.part(path).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        backbone.model(**batch.inputs)
    handle.remove()
    inputs = seen[0][batch.inputs["attention_mask"].bool()]
    wanted = torch.linalg.svd(inputs - inputs.mean(dim=0), full_matrices=False).Vh[0]
    trained = attach(backbone, AdapterConfig(kind="lora", init="eva", r=4), batches=[batch.inputs])
    found = layers_of(trained.model)[path].lora_A["default"].weight[0]
    assert abs(float((found @ wanted).detach())) > 0.99


@pytest.mark.parametrize("r", [4, 64])
def test_eva_without_enough_tokens_is_refused(loaded, batch_of, r):
    backbone = loaded("unifiedqa-t5-base")
    batches = None if r == 4 else [batch_of(backbone).inputs]
    kbit.prepare(backbone.core, backbone.family)
    adapter = AdapterConfig(kind="lora", init="eva", r=r)
    with pytest.raises(RequestError, match=rf"adapter.init is eva, adapter.r is {r}, and the smallest batch"):
        lora.add_lora(backbone.core, backbone.family, adapter, batches=batches)
