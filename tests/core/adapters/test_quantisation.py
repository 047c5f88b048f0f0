import pytest
import torch
import transformers
from torch import nn

from lightbox.adapters.guards import quantised_digest, refuse_packed
from lightbox.backbones import quantisation
from lightbox.backbones.families import FAMILIES, family_of
from lightbox.backbones.published import GENERATORS
from lightbox.backbones.quantisation import Count, count_by_part, part_of, quantised_as
from lightbox.errors import RequestError, WorkError


def from_files(folder, skipped):
    """What transformers loads in NF4 when asked to leave `skipped` alone."""
    config = transformers.AutoConfig.from_pretrained(folder)
    family = family_of(config.to_dict(), name=str(folder))
    settings = quantisation.settings_for("nf4", family, dtype=torch.float32, device="cpu")
    settings["quantization_config"].llm_int8_skip_modules = list(skipped)
    model = getattr(transformers, family.model_class).from_pretrained(folder, dtype=torch.float32, **settings)
    return model, family


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.parametrize("name", GENERATORS)
def test_only_the_language_model_is_quantised_and_all_of_it(loaded, name, quant):
    backbone = loaded(name, quant=quant)
    counts = count_by_part(backbone.core, backbone.family)
    kept = sum(n.endswith(".wo") for n, m in backbone.core.named_modules() if isinstance(m, nn.Linear))
    assert counts["language"].quantised == counts["language"].linear - kept
    assert counts["language"].quantised >= 12
    assert {counts[part].quantised for part in ("vision", "projector", "head")} == {0}
    assert counts["head"].linear == 1
    assert (counts["vision"].linear > 0) == backbone.family.has_vision
    assert {quantised_as(m) for m in backbone.core.modules()} == {"none", quant}


@pytest.mark.parametrize(("name", "skipped"), [("llava-1.5-7b", "vision_tower"), ("qwen2.5-vl-7b", "visual")])
def test_a_skip_list_without_the_full_path_quantises_the_tower_and_is_refused(saved, name, skipped):
    model, family = from_files(saved(name), [skipped, "lm_head"])
    assert count_by_part(model, family)["vision"].quantised > 0
    with pytest.raises(WorkError, match=r"not stored as adapter.quant=nf4 asks.* vision (\d+) of \1[;,]"):
        quantisation.settle(model, family, "nf4")


def test_a_skip_list_without_the_head_quantises_it_and_is_refused(saved):
    model, family = from_files(saved("llava-1.5-7b"), ["model.vision_tower", "model.multi_modal_projector"])
    assert count_by_part(model, family)["head"] == Count(1, 1)
    with pytest.raises(WorkError, match=r"1 layers are not stored .* lm_head .*head 1 of 1"):
        quantisation.settle(model, family, "nf4")


def test_a_language_model_left_in_full_is_refused(saved):
    model, family = from_files(saved("llava-1.5-7b"), ["model", "lm_head"])
    with pytest.raises(WorkError, match="14 layers are not stored as adapter.quant=nf4 asks"):
        quantisation.settle(model, family, "nf4")


def test_a_quantised_class_around_full_weights_is_refused(loaded):
    backbone = loaded("llava-1.5-7b", quant="nf4")
    layer = backbone.part("model.language_model.layers.1.mlp.up_proj")
    layer.weight = nn.Parameter(torch.zeros(128, 64), requires_grad=False)
    with pytest.raises(WorkError, match=r"1 layers .*layers\.1\.mlp\.up_proj \(nf4\)"):
        quantisation.settle(backbone.core, backbone.family, "nf4")


def test_files_that_are_quantised_are_refused_where_16_bit_is_asked(loaded):
    backbone = loaded("llava-1.5-7b", quant="int8")
    with pytest.raises(RequestError, match="stored as int8 .14 layers., and adapter.quant is none"):
        quantisation.settle(backbone.core, backbone.family, "none")


def test_every_part_of_every_family_is_told_from_the_others():
    for family in FAMILIES:
        paths = {"head": family.head, "vision": family.vision, "projector": family.projector}
        for part, path in paths.items():
            assert not path or part_of(f"{path}.anything", family) == part
            assert not path or part_of(f"{path}2", family) != part
        assert part_of(f"{family.layers[0]}.0.self_attn.q_proj", family) == "language"


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_a_loaded_4_bit_model_computes_the_same_in_evaluation_as_in_training_mode(loaded, logits_of, name):
    backbone = loaded(name, quant="nf4")
    before = quantised_digest(backbone.model)
    assert not backbone.model.training
    evaluated = logits_of(backbone)
    backbone.model.train()
    assert torch.equal(logits_of(backbone), evaluated)
    refuse_packed(backbone.model)
    assert quantised_digest(backbone.model) == before


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="only CPUs with AVX512-BF16 repack 4-bit weights")
def test_without_the_switch_one_evaluation_destroys_a_4_bit_model_and_train_first_only_puts_it_off(saved, loaded):
    """What omitting train() before the first forward breaks, on a model that transformers alone has loaded."""
    settled = loaded("llava-1.5-7b", quant="nf4")
    raw, family = from_files(saved("llava-1.5-7b"), settled.family.kept_in_16_bit)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = raw.train()(input_ids=ids).logits
        digest = quantised_digest(raw)
        assert torch.equal(settled.model(input_ids=ids).logits, wanted)
        refuse_packed(raw)  # train() came first: nothing is lost yet

        evaluated = raw.eval()(input_ids=ids).logits
        again = raw.train()(input_ids=ids).logits
    assert (evaluated - wanted).abs().max() > 1e-4
    assert (again - wanted).abs().max() > 1e-4  # training mode does not bring it back
    assert quantised_digest(raw) != digest
    with pytest.raises(WorkError, match="4-bit weights of 14 layers were repacked by an evaluation on the CPU"):
        refuse_packed(raw)
    raw.state_dict()  # saving unpacks, so the flag is gone, and what was rounded stays rounded
    refuse_packed(raw)
    assert quantised_digest(raw) != digest


def test_dtypes_other_than_those_of_quantised_layers_are_the_one_that_was_asked(loaded):
    backbone = loaded("qwen2.5-vl-7b", quant="nf4", dtype="bf16")
    quantised = {f"{n}.weight" for n, m in backbone.core.named_modules() if quantised_as(m) == "nf4"}
    rest = {p.dtype for n, p in backbone.core.named_parameters() if n not in quantised}
    assert rest == {torch.bfloat16}
    assert all(not p.requires_grad for n, p in backbone.core.named_parameters() if n in quantised)
