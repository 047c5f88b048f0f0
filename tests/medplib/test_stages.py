"""After each stage exactly its tensors have changed; expressions that match nothing; routers that are controls."""

import copy
import re

import pytest
import torch

from lightbox.adapters import lora
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.trained_tensors import changed
from medplib.assembly import add_experts
from medplib.experts import MixtureSettings
from medplib.objective import STAGE_WEIGHTS
from medplib.stages import STAGES, choose_trainable, fingerprints, group_patterns, train_stage
from medplib.train import pixel_step

LAYERS = "model.language_model.layers"
TABLE = "vlm.model.language_model.embed_tokens.weight"
TIED = {TABLE, "vlm.lm_head.weight"}


def with_experts(model, settings=None):
    """The model with two experts, both its own networks."""
    core = model.backbone.core
    source = copy.deepcopy(core)
    add_experts(core, {"grounding": source, "vl": source}, layers=LAYERS, settings=settings)
    return model


def one_step(model, items, stage):
    """A step of a stage; names that changed, and the tensors that train by group."""
    groups = train_stage(model, stage, model.backbone.family)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = fingerprints(model)
    loss, count, _ = pixel_step(model, model.prepare(items), STAGE_WEIGHTS[stage])
    (loss / count).backward()
    optimiser.step()
    return changed(before, fingerprints(model)), groups


def expected(model, pattern):
    return {name for name in fingerprints(model) if re.fullmatch(pattern, name)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ("align", r"vlm\.model\.multi_modal_projector\..*"),
        (
            "vl",
            r"vlm\.model\.multi_modal_projector\..*|vlm\.model\.language_model\.(?!norm).*|vlm\.lm_head\.weight"
            r"|region_adapter\..*",
        ),
        ("grounding", r"vlm\.model\.language_model\.layers\.\d+\.mlp\..*|seg_projector\..*|sam\.mask_decoder\..*"),
        (
            "joint",
            r"vlm\.model\.multi_modal_projector\..*|vlm\.model\.language_model\.(?!norm).*|vlm\.lm_head\.weight"
            r"|region_adapter\..*|seg_projector\..*|sam\.mask_decoder\..*",
        ),
    ],
)
def test_a_stage_changes_its_tensors_and_no_others(new_model, items, stage, pattern):
    model = new_model("tiny")
    names, groups = one_step(model, items, stage)
    # of the decoder, what makes three masks and an estimate has no part in one mask's loss
    idle = expected(model, r"sam\.mask_decoder\.(?:output_hypernetworks_mlps\.[123]|iou_prediction_head)\..*")
    idle |= {name for name in names ^ expected(model, pattern) if name.endswith("k_proj.bias")}  # softmax undoes it
    assert names - TIED == expected(model, pattern) - idle - TIED
    assert (TABLE in names) == (stage in ("vl", "joint"))
    assert set(groups) == set(STAGES[stage])


def test_stage_4_changes_routers_experts_and_what_joins_them(new_model, items):
    model = with_experts(new_model("tiny"))
    names, groups = one_step(model, items, "mixture")
    assert any(".mlp.router." in name for name in names)
    assert any(".mlp.experts." in name for name in names)
    frozen = (
        r"vlm\.model\.(?:vision_tower|multi_modal_projector)\..*|vlm\..*(?:[ko]_proj|norm)\.weight|sam\.(?!mask_dec).*"
    )
    assert not {name for name in names if re.fullmatch(frozen, name)}
    trained = {name for own in groups.values() for name in own}
    idle = {name for name in trained - names if re.search(r"sam\.mask_decoder\.|\.mlp\.", name)}
    assert names | TIED == (trained - idle) | TIED  # a decoder's key bias, and an expert of a layer, may get nothing
    assert all(names & set(own) for group, own in groups.items() if group != "router")


def test_a_router_that_is_missing_is_named(new_model):
    model = new_model("tiny")
    with pytest.raises(RequestError, match=r"The group router.*No tensor of the model has such a name"):
        train_stage(model, "mixture", model.backbone.family)


def test_a_random_router_stays_as_it_was_drawn(new_model):
    model = with_experts(new_model("tiny"), MixtureSettings(router="random"))
    with pytest.raises(RequestError, match="That one is random, a control"):
        train_stage(model, "mixture", model.backbone.family)
    groups = train_stage(model, "mixture", model.backbone.family, but_not=("router",))
    assert "router" not in groups
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".router." in name)


def test_expressions_and_stages_that_train_nothing_are_refused(tiny):
    family = tiny.backbone.family
    with pytest.raises(RequestError, match=r"The group typo, 'vlm\\.projektor"):
        choose_trainable(tiny, {"typo": r"vlm\.projektor\..*"})
    with pytest.raises(RequestError, match="A stage without groups"):
        choose_trainable(tiny, {})
    with pytest.raises(RequestError, match="stage is 'fourth'"):
        train_stage(tiny, "fourth", family)
    with pytest.raises(RequestError, match="Stage align without router"):
        train_stage(tiny, "align", family, but_not=("router",))


def test_every_group_names_tensors_of_a_published_layout_too(new_model):
    model = with_experts(new_model("llava-1.5"))
    patterns = group_patterns(model.backbone.family)
    chosen = choose_trainable(model, patterns)
    assert all(chosen.values())
    assert {name for name in chosen["tables"]} == TIED  # two tables here
    assert not any("vision_tower" in name for names in chosen.values() for name in names)


def test_under_an_adapter_its_additions_train_and_no_base(new_model):
    plain = new_model("llava-1.5")
    family = plain.backbone.family
    settings = AdapterConfig(kind="lora", r=2, targets=rf"{re.escape(LAYERS)}\.\d+\.mlp\.\w+_proj")
    wrapped = lora.add_lora(plain.backbone.core, family, settings)
    model = PixelVLM(plain.backbone.with_model(wrapped), plain.segmenter)
    groups = train_stage(model, "grounding", family)
    assert {name.rpartition("_proj.")[2] for name in groups["networks"]} == {
        "lora_A.default.weight",
        "lora_B.default.weight",
    }
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not [name for name in trained if "base_layer" in name]
