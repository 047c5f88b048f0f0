"""Parts of every family, looked up in the full published models on the meta device."""

import json

import pytest
import torch
from torch import nn

from lightbox.backbones.families import BY_MODEL_TYPE, FAMILIES, Family, family_of
from lightbox.backbones.published import GENERATORS, PUBLISHED, WHOLE, Published, read_published, shrunk_values
from lightbox.errors import RequestError
from lightbox.testing.shrunk import build, real_config, shrunk_config


def family_by_name(name: str) -> Family:
    return family_of(PUBLISHED[name].config, name=name)


@pytest.fixture(scope="module", params=GENERATORS)
def full(request):
    with torch.device("meta"):
        return family_by_name(request.param), build(request.param, real_config(request.param))


def test_every_family_has_a_published_member():
    assert {family_by_name(name).name for name in GENERATORS} == {family.name for family in FAMILIES}
    assert all(BY_MODEL_TYPE[kind] is family for family in FAMILIES for kind in family.model_types)


def test_parts_are_where_the_family_says(full):
    family, model = full
    assert type(model).__name__ == family.model_class
    assert isinstance(model.get_submodule(family.embeddings), nn.Embedding)
    assert model.get_submodule(family.embeddings) is model.get_input_embeddings()
    assert model.get_submodule(family.head) is model.get_output_embeddings()
    assert all(isinstance(model.get_submodule(path), nn.ModuleList) for path in family.layers)
    for path in (family.vision, family.projector, family.language):
        assert next(model.get_submodule(path).parameters()).numel()
    assert model.config.is_encoder_decoder == family.is_encoder_decoder


def test_linears_are_exactly_those_inside_the_layers(full):
    family, model = full
    inside = {
        name.rpartition(".")[2]
        for path in family.layers
        for name, module in model.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear)
    }
    assert inside <= set(family.linears)
    unseen = set(family.linears) - inside
    assert unseen <= ({"wi_0", "wi_1"} if family.name == "t5" else set())  # gated T5 has those instead of wi


def test_outside_the_layers_lie_only_vision_projector_and_head(full):
    family, model = full
    own = (*family.layers, *family.kept_in_16_bit)
    left = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.startswith(own)
    ]
    assert left == []


@pytest.mark.parametrize("name", GENERATORS)
def test_small_model_has_the_same_parts(name):
    family = family_by_name(name)
    with torch.device("meta"):
        model = build(name, shrunk_config(name))
    for path in (family.vision, family.projector, family.language, *family.layers, family.embeddings, family.head):
        model.get_submodule(path)


def test_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"model.backbone is 'x', of model_type 'blip'.*llava, llava_next"):
        family_of({"model_type": "blip"}, name="x")


def test_model_with_its_own_code_is_refused_for_that():
    config = {"model_type": "llava_mistral", "auto_map": {"AutoConfig": "m.C"}}
    with pytest.raises(RequestError, match="asks for code that comes with the weights"):
        family_of(config, name="x", key="model.vlm")


def test_the_published_models_are_read_whole_and_strictly(tmp_path):
    entry = {"repository": "a/b", "model_class": "C", "parameters": 1.5, "config": {"d": 2}, "shrink": {"d": 1}}
    file = tmp_path / "published.json"
    file.write_text(json.dumps({"towers": {"t": entry}}))
    assert read_published(file) == {"towers": {"t": Published(**entry)}}
    for broken, why in (
        ({**entry, "sources": "the web"}, "towers.t.sources"),
        ({key: value for key, value in entry.items() if key != "shrink"}, "towers.t.shrink"),
        ({**entry, "parameters": "7B"}, "towers.t.parameters"),
    ):
        file.write_text(json.dumps({"towers": {"t": broken}}))
        with pytest.raises(ValueError, match=why):
            read_published(file)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_small_form_changes_is_there_to_change(name):
    def check(values, changes, path):
        for key, value in changes.items():
            is_nested = isinstance(value, dict) and key not in WHOLE
            assert not is_nested or key in values, f"{path}.{key}"
            if is_nested:
                check(values[key], value, f"{path}.{key}")

    check(PUBLISHED[name].config, PUBLISHED[name].shrink, name)
    assert shrunk_values(name) != PUBLISHED[name].config
