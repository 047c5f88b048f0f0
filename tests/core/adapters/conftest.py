"""Published models in miniature, saved once, loaded anew for each test, with one batch of two items."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from lightbox.adapters.attach import attach
from lightbox.backbones.loading import load
from lightbox.config import AdapterConfig
from lightbox.testing.shrunk import save_shrunk

PROMPTS = ["Is there an effusion?", "Side?"]
TARGETS = ["yes, on the left", "no"]


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Name -> folder."""
    return functools.cache(lambda name: save_shrunk(name, tmp_path_factory.mktemp("base") / name))


@pytest.fixture
def loaded(saved):
    """Name and settings of `load` -> a fresh backbone."""
    return lambda name, **settings: load(str(saved(name)), **settings)


@pytest.fixture
def attached(loaded):
    """Name, settings of `adapter.*` -> a fresh backbone with a LoRA whose B is not 0, and its settings."""

    def make(name, *, dtype="fp32", is_awake=True, **settings):
        adapter = AdapterConfig(**({"kind": "lora", "r": 4, "alpha": 6.0} | settings))
        torch.manual_seed(0)
        backbone = attach(loaded(name, quant=adapter.quant, dtype=dtype), adapter)
        if is_awake:
            wake(backbone.model)
        return backbone, adapter

    return make


def wake(model):
    """Move what trains, as training would: a B of 0 and an untouched copy cannot be told from the base."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(parameter.numel()))
            if ".modules_to_save." in name:
                parameter.mul_(1.3)


@pytest.fixture
def batch_of():
    """Backbone -> a batch of two items."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in PROMPTS]

    def make(backbone, items=(0, 1)):
        return backbone.prepare(
            [images[i] for i in items] if backbone.family.has_vision else None,
            [PROMPTS[i] for i in items],
            [TARGETS[i] for i in items],
            max_tokens=300,
        )

    return make


@pytest.fixture
def logits_of(batch_of):
    """Backbone -> logits of all positions of the batch, in the mode that the model is in."""

    def compute(backbone):
        with torch.no_grad():
            return backbone.model(**batch_of(backbone).inputs, use_cache=False).logits

    return compute
