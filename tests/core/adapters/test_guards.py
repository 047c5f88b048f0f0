import pytest
import torch
from peft import prepare_model_for_kbit_training
from torch import nn

from lightbox.adapters import guards
from lightbox.adapters.guards import GradientReach, check_no_bulk_fp32, check_trainable, quantised_digest
from lightbox.backbones.quantisation import quantised_as
from lightbox.config import AdapterConfig
from lightbox.errors import WorkError


def test_the_report_names_and_counts_what_trains(attached):
    backbone, _ = attached("llava-1.5-7b", quant="nf4", projector="full")
    report = {group.group: group for group in guards.trainable_report(backbone.model, backbone.family)}
    linears = {"q_proj": 128, "k_proj": 128, "v_proj": 128, "o_proj": 128}
    linears |= {"gate_proj": 192, "up_proj": 192, "down_proj": 192}  # in + out
    assert report["lora language"].count == 2 * 4 * sum(linears.values())
    assert len(report["lora language"].names) == 2 * 2 * 7
    assert report["projector"].count == 32 * 64 + 64 + 64 * 64 + 64
    lines = guards.trainable_lines(backbone.model, backbone.family)
    assert any(line.startswith("projector: 6,272 numbers in 4 tensors, such as base_model") for line in lines)
    frozen = sum(p.numel() for n, p in backbone.core.named_parameters() if not p.requires_grad)
    frozen += sum(m.weight.numel() for m in backbone.core.modules() if quantised_as(m) == "nf4")  # two to a byte
    assert lines[-1].startswith(f"14,976 of {frozen + 14976:,} numbers train")


def test_what_trains_beyond_the_settings_is_named(attached):
    backbone, adapter = attached("llava-1.5-7b")
    check_trainable(backbone.model, backbone.family, adapter)
    backbone.part("model.vision_tower").requires_grad_(True)
    with pytest.raises(WorkError, match=r"Trainable beyond the settings: base_model\.model\.model\.vision_tower"):
        check_trainable(backbone.model, backbone.family, adapter)


@pytest.mark.parametrize(
    ("settings", "has_new_tokens", "missing"),
    [
        ({"projector": "full"}, False, "projector"),
        ({"projector": "lora"}, False, "lora projector"),
        ({}, True, "new tokens"),
    ],
)
def test_what_should_train_and_does_not_is_named(attached, settings, has_new_tokens, missing):
    backbone, _ = attached("llava-1.5-7b")
    adapter = AdapterConfig(kind="lora", **settings)
    with pytest.raises(WorkError, match=rf"Trainable beyond the settings: -; .* missing: {missing}\."):
        check_trainable(backbone.model, backbone.family, adapter, has_new_tokens=has_new_tokens)


def test_a_bulk_of_float32_in_a_16_bit_model_is_refused_unless_it_trains():
    model = nn.ModuleDict({"small": nn.Linear(999, 1000), "large": nn.Linear(1001, 1000)})
    model["large"].requires_grad_(False)
    check_no_bulk_fp32(model, torch.float32)
    with pytest.raises(WorkError, match=r"1 frozen tensors of a bfloat16 model are float32: large\.weight\."):
        check_no_bulk_fp32(model, torch.bfloat16)
    model["large"].requires_grad_(True)
    check_no_bulk_fp32(model, torch.bfloat16)
    model["large"].requires_grad_(False).bfloat16()
    model["small"].register_buffer("table", torch.zeros(1_000_001))
    with pytest.raises(WorkError, match=r"small\.table"):
        check_no_bulk_fp32(model, torch.float16)


def test_peft_s_own_preparation_would_be_caught(loaded):
    """It widens all that is not quantised; here the small model's table is made large enough to count."""
    backbone = loaded("llava-1.5-7b", quant="nf4", dtype="bf16")
    backbone.core.resize_token_embeddings(16_000, mean_resizing=False)
    check_no_bulk_fp32(backbone.core, torch.bfloat16)
    prepare_model_for_kbit_training(backbone.core, use_gradient_checkpointing=False)
    with pytest.raises(WorkError, match="embed_tokens"):
        check_no_bulk_fp32(backbone.core, torch.bfloat16)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_the_digest_of_a_base_does_not_change_by_adapters_and_does_by_one_bit(loaded, attached, logits_of, quant):
    base = loaded("llava-1.5-7b", quant=quant)
    digest = quantised_digest(base.model)
    backbone, _ = attached("llava-1.5-7b", quant=quant)
    assert quantised_digest(backbone.model) == digest
    logits_of(backbone)  # the first forward of int8 moves its scales
    assert quantised_digest(backbone.model) == digest
    layer = base.part("model.language_model.layers.1.mlp.down_proj")
    layer.weight.data[3, 0] ^= 1
    assert quantised_digest(base.model) != digest


@pytest.mark.parametrize("part", ["absmax", "second", "offset"])
def test_the_digest_sees_both_levels_of_scales(loaded, part):
    backbone = loaded("llava-1.5-7b", quant="nf4")
    digest = quantised_digest(backbone.model)
    state = backbone.part("model.language_model.layers.0.mlp.up_proj").weight.quant_state
    {"absmax": state.absmax, "second": state.state2.absmax, "offset": state.offset}[part].view(-1)[0] += 1
    assert quantised_digest(backbone.model) != digest


def test_a_model_without_quantised_layers_has_no_digest(loaded):
    assert quantised_digest(loaded("llava-1.5-7b").model) == ""


def test_gradients_of_a_start_reach_b_first_and_a_by_the_second_step(attached, batch_of):
    backbone, _ = attached("qwen2.5-vl-7b", quant="nf4", projector="full", is_awake=False)
    batch = batch_of(backbone)
    reach = GradientReach(backbone.model.train())
    optimizer = torch.optim.AdamW([p for p in backbone.model.parameters() if p.requires_grad], lr=1e-3)
    backbone.loss(batch)[0].backward()
    reach.observe(1)
    assert {n.split(".")[-3] for n in reach.waiting} == {"lora_A"}
    optimizer.step()
    optimizer.zero_grad()
    backbone.loss(batch)[0].backward()
    reach.observe(2)
    assert not reach.waiting


def test_a_tensor_that_no_gradient_reaches_is_named_at_the_second_step(attached, batch_of):
    backbone, _ = attached("llava-1.5-7b", projector="full")
    text = backbone.prepare(None, ["Side?"], ["left"], max_tokens=100)  # no image: the projector is not used
    reach = GradientReach(backbone.model)
    for step in (1, 2):
        backbone.loss(text)[0].backward()
        if step == 1:
            reach.observe(step)
    with pytest.raises(WorkError, match=r"No gradient reached 4 trainable tensors in 2 steps: .*multi_modal_projector"):
        reach.observe(2)


def test_after_two_steps_nothing_is_asked_any_more(attached):
    backbone, _ = attached("llava-1.5-7b")
    GradientReach(backbone.model).observe(3)
