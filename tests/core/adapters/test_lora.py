import re

import pytest
import torch
from torch import nn

from lightbox.adapters import guards, kbit, lora
from lightbox.adapters.plain import plain_name
from lightbox.backbones.published import GENERATORS
from lightbox.backbones.quantisation import part_of, quantised_as
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError

SEEING = [name for name in GENERATORS if name != "unifiedqa-t5-base"]


def lora_modules(model):
    return {plain_name(n).rpartition(".lora_A")[0] for n, _ in model.named_parameters() if ".lora_A." in n}


@pytest.mark.parametrize("name", GENERATORS)
def test_by_default_every_linear_layer_of_the_language_model_and_no_other_is_adapted(attached, name):
    backbone, _ = attached(name)
    family = backbone.family
    linears = {plain_name(n) for n, m in backbone.core.named_modules() if isinstance(m, nn.Linear) and "lora_" not in n}
    inside = {n for n in linears if part_of(n, family) == "language" and n.startswith(family.layers)}
    assert lora_modules(backbone.model) == inside
    assert {n.rpartition(".")[2] for n in inside} <= set(family.linears)
    assert len(inside) >= 12


def test_names_of_the_base_stay_as_they_were_below_the_wrapper(loaded, attached):
    before = {n for n, _ in loaded("qwen2.5-vl-7b").core.named_parameters()}
    backbone, _ = attached("qwen2.5-vl-7b", projector="full")
    after = {plain_name(n) for n, _ in backbone.model.named_parameters() if "lora_" not in n}
    assert after == before
    assert all(n.startswith("base_model.model.") for n, _ in backbone.model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_a_projector_is_trained_in_full_in_float32(attached, logits_of, name):
    backbone, _ = attached(name, dtype="bf16", projector="full")
    group = {g.group: g for g in guards.trainable_report(backbone.model, backbone.family)}["projector"]
    parameters = dict(backbone.model.named_parameters())
    assert {parameters[n].dtype for n in group.names} == {torch.float32}
    assert logits_of(backbone).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in SEEING if name != "medgemma-4b"])
def test_a_projector_takes_additions_in_each_of_its_linear_layers(attached, name):
    backbone, _ = attached(name, projector="lora")
    found = {n for n in lora_modules(backbone.model) if part_of(n, backbone.family) == "projector"}
    wanted = {
        plain_name(n)
        for n, m in backbone.part(backbone.family.projector).named_modules(prefix=backbone.family.projector)
        if isinstance(m, nn.Linear) and "lora_" not in n
    }
    assert found == wanted
    assert found


def test_a_projector_without_linear_layers_is_refused_additions(loaded):
    backbone = loaded("medgemma-4b")
    with pytest.raises(RequestError, match=r"adapter.projector is lora.*no linear layer.*or full to train it as a who"):
        lora.target_pattern(backbone.core, backbone.family, AdapterConfig(kind="lora", projector="lora"))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_projector_is_refused_for_a_model_that_has_none(loaded, mode):
    backbone = loaded("unifiedqa-t5-base")
    with pytest.raises(RequestError, match=rf"adapter.projector is {mode} and the model is a t5. It has no projector"):
        lora.target_pattern(backbone.core, backbone.family, AdapterConfig(kind="lora", projector=mode))


def test_a_pattern_of_ones_own_adapts_what_it_matches(attached):
    backbone, _ = attached("llava-1.5-7b", targets=r"model\.language_model\..*\.(q_proj|v_proj)")
    layers = range(2)
    assert lora_modules(backbone.model) == {
        f"model.language_model.layers.{i}.self_attn.{kind}_proj" for i in layers for kind in "qv"
    }


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ("q_proj", r"matches no module as a whole; names look like model\.language_model\.layers\.0"),
        (r".*\.(q_proj|v_proj)", r"matches model\.vision_tower.*the vision tower, which stays frozen"),
        (r"model\.vision_tower\..*fc1", r"the vision tower, which stays frozen.*Begin it with 'model\\\.language_mode"),
        (r".*linear_1", r"matches model\.multi_modal_projector\.linear_1, the projector, which has a setting"),
        (r"lm_head|model\.language_model\..*q_proj", "matches lm_head, a module outside the layers"),
        (r"model\.language_model\.embed_tokens", "embed_tokens, a module outside the layers"),
        (r"model\.language_model\.layers\.0\..*", "additions are to linear layers"),
        (r"(q_proj", "is no regular expression: "),
    ],
)
def test_a_pattern_that_matches_nothing_or_the_wrong_part_is_refused(loaded, targets, why):
    backbone = loaded("llava-1.5-7b")
    with pytest.raises(RequestError, match=why) as caught:
        lora.target_pattern(backbone.core, backbone.family, AdapterConfig(kind="lora", targets=targets))
    assert str(caught.value).startswith(f"adapter.targets is '{targets}'")
    assert caught.value.do.endswith(".")


def test_the_example_in_a_refusal_is_accepted(loaded):
    backbone = loaded("llava-1.5-7b")
    with pytest.raises(RequestError) as caught:
        lora.target_pattern(backbone.core, backbone.family, AdapterConfig(kind="lora", targets="q_proj"))
    example = re.search(r"such as '(.*)'", caught.value.do).group(1)
    adapter = AdapterConfig(kind="lora", targets=example)
    assert lora.target_pattern(backbone.core, backbone.family, adapter) == example


@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
def test_at_its_start_an_addition_changes_no_bit(loaded, attached, logits_of, quant):
    base = loaded("llava-1.5-7b", quant=quant)
    base.core.requires_grad_(False)
    backbone, _ = attached("llava-1.5-7b", quant=quant, is_awake=False)
    assert torch.equal(logits_of(backbone), logits_of(base))


def test_additions_are_float32_and_the_rest_stays_16_bit(attached):
    backbone, _ = attached("llava-1.5-7b", quant="nf4", dtype="bf16")
    for name, parameter in backbone.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
        else:
            assert parameter.dtype in (torch.bfloat16, torch.uint8), name


def test_rslora_scales_by_the_root_of_the_rank(attached):
    plain, _ = attached("llava-1.5-7b", r=16, alpha=8.0)
    scaled, _ = attached("llava-1.5-7b", r=16, alpha=8.0, use_rslora=True)
    path = "model.language_model.layers.0.mlp.up_proj"
    assert plain.part(path).scaling == {"default": 0.5}
    assert scaled.part(path).scaling == {"default": 2.0}


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_dora_learns_lengths_beside_directions_and_starts_at_the_base(loaded, attached, logits_of, quant):
    backbone, adapter = attached("llava-1.5-7b", quant=quant, use_dora=True, is_awake=False)
    names = [n for n, p in backbone.model.named_parameters() if p.requires_grad and "lora_magnitude_vector" in n]
    assert len(names) == 14
    base = logits_of(loaded("llava-1.5-7b", quant=quant))
    torch.testing.assert_close(logits_of(backbone), base, atol=2e-6, rtol=1e-5)


def test_preparation_changes_no_dtype(loaded):
    backbone = loaded("qwen2.5-vl-7b", quant="nf4", dtype="bf16")
    before = {name: p.dtype for name, p in backbone.core.named_parameters()}
    kbit.prepare(backbone.core, backbone.family, checkpoint_layers=True)
    assert {name: p.dtype for name, p in backbone.core.named_parameters()} == before
    assert not any(p.requires_grad for p in backbone.core.parameters())
    assert sum(quantised_as(m) == "nf4" for m in backbone.core.modules()) == 14


def test_peft_leaves_no_hook_on_the_token_table_of_a_checkpointed_base(loaded):
    backbone = loaded("llava-1.5-7b")
    kbit.prepare(backbone.core, backbone.family, checkpoint_layers=True)
    model = lora.add_lora(backbone.core, backbone.family, AdapterConfig(kind="lora", r=4))
    rows = model.get_input_embeddings()(torch.tensor([[3, 4]]))
    assert not rows.requires_grad
