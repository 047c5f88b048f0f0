"""A stage that trains the router alone: base, experts and the adapter's folder together are the trained model again."""

import copy

import pytest
import torch
from PIL import Image

from lightbox.adapters import artifact, guards
from lightbox.adapters.attach import attach
from lightbox.backbones.loading import load
from lightbox.backbones.rows import UNLIMITED
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.testing.shrunk import save_shrunk
from medplib.assembly import add_experts, load_experts, mixtures, save_experts
from medplib.experts import MixtureSettings

ADAPTER = AdapterConfig(kind="lora", r=2, modules=[r"model\.language_model\.layers\.\d+\.mlp\.router"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder of a tiny LLaVA."""
    return str(save_shrunk("llava-1.5-7b", tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def experts(place, tmp_path_factory):
    """Folder of two experts of it, of which one was changed."""
    core = load(place).core
    other = copy.deepcopy(core)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in other.model.language_model.layers:
            for parameter in layer.mlp.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    sources = {"grounding": other, "language": copy.deepcopy(core)}
    add_experts(core, sources, layers="model.language_model.layers", settings=MixtureSettings(weight="prob"))
    return save_experts(tmp_path_factory.mktemp("experts"), core)


def opened(place, experts):
    backbone = load(place)
    load_experts(experts, backbone.core)
    return backbone


def batch_of(backbone):
    images = [Image.new("L", (56, 56), level) for level in (40, 200)]
    return backbone.prepare(images, ["Is there a nodule?", "Where?"], ["yes", "left upper zone"], max_tokens=UNLIMITED)


@torch.no_grad()
def logits_of(backbone):
    batch = batch_of(backbone)
    return backbone.model.eval()(**backbone.inputs_of(batch)).logits


def test_a_router_that_was_trained_alone_comes_back_to_the_last_bit(place, experts, tmp_path):
    trained = attach(opened(place, experts), ADAPTER)
    for name, parameter in trained.model.named_parameters():
        parameter.requires_grad_(".mlp.router." in name and parameter.requires_grad)
    before = {name: parameter.detach().clone() for name, parameter in trained.model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in trained.model.parameters() if p.requires_grad], lr=100.0)
    for _ in range(2):
        trained.loss(batch_of(trained))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [name for name, p in trained.model.named_parameters() if not torch.equal(p, before[name])]
    layers = len(dict(mixtures(trained.model)))
    assert len(moved) == 2 * layers
    assert all(".router.modules_to_save.default.rows." in name for name in moved)
    wanted = logits_of(trained)
    folder = artifact.save(tmp_path / "adapter", trained, ADAPTER)
    again = artifact.load(folder, opened(place, experts))
    assert torch.equal(logits_of(again), wanted)
    assert not torch.equal(logits_of(opened(place, experts)), wanted)
    with pytest.raises(RequestError, match=r"for modules such as .*mlp\.experts.* which '.*' lacks"):
        artifact.load(folder)


def test_experts_get_additions_and_routers_are_named_in_the_report(place, experts):
    trained = attach(opened(place, experts), ADAPTER)
    names = [name for name, p in trained.model.named_parameters() if p.requires_grad]
    for path in ("experts.grounding.gate_proj.lora_A", "experts.language.down_proj.lora_B", "router.modules_to_save"):
        assert any(path in name for name in names), path
    guards.check_trainable(trained.model, trained.family, ADAPTER)
