"""What MedPLIB adds is saved and read again, routers too; other models are refused."""

import copy

import pytest
import torch

from lightbox.errors import RequestError
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.pixel_vlm_parts import parts_of
from lightbox.paper.trained_tensors import changed
from medplib.artifact import load_parts, save_parts
from medplib.assembly import add_experts
from medplib.objective import LossWeights
from medplib.stages import choose_trainable, fingerprints, group_patterns
from medplib.train import pixel_step


def with_experts(model):
    core = model.backbone.core
    source = copy.deepcopy(core)
    add_experts(core, {"grounding": source, "vl": source}, layers="model.language_model.layers")
    return model


def test_a_model_that_trained_its_router_only_is_read_again(new_model, items, tmp_path):
    model, again = with_experts(new_model("tiny")), with_experts(new_model("tiny"))
    choose_trainable(model, {"router": group_patterns(model.backbone.family)["router"]})
    before = fingerprints(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    loss, _, _ = pixel_step(model, model.prepare(items), LossWeights())
    loss.backward()
    optimiser.step()
    trained = changed(before, fingerprints(model))
    assert trained
    assert all(".router.rows." in name for name in trained)
    load_parts(save_parts(tmp_path, model), again)
    assert changed(fingerprints(model), fingerprints(again)) == set()


def test_all_that_is_added_is_saved(tiny):
    names = set(parts_of(tiny))
    assert {"region_adapter.weight", "seg_projector.0.weight", "seg_projector.3.bias"} <= names
    assert any(name.startswith("sam.mask_decoder.") for name in names)
    assert not any("vision" in name or "language_model" in name for name in names)


def test_parts_of_another_model_are_refused(new_model, tiny, tmp_path):
    folder = save_parts(tmp_path, tiny)
    with pytest.raises(RequestError, match=r"missing vlm\..*router"):
        load_parts(folder, with_experts(new_model("tiny")))
    with pytest.raises(RequestError, match=r"of another shape region_adapter"):
        load_parts(folder, new_model("llava-1.5"))
    with pytest.raises(RequestError, match="seg_state predict"):
        load_parts(folder, PixelVLM(tiny.backbone, tiny.segmenter, seg_state="self"))
    with pytest.raises(RequestError, match=r"There is no pixel_vlm\.json"):
        load_parts(tmp_path / "elsewhere", tiny)
