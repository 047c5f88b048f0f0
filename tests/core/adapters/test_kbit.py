import copy

import pytest
import torch
from torch import nn

from lightbox.adapters import kbit
from lightbox.adapters.attach import attach
from lightbox.backbones.published import GENERATORS
from lightbox.config import AdapterConfig

SEEING = [name for name in GENERATORS if name != "unifiedqa-t5-base"]
DROPS = ("dropout", "activation_dropout", "attention_dropout")


def without_dropout(model):
    """Attention of BART and its like holds dropout as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def gradients(backbone, batch):
    backbone.model.zero_grad()
    loss, tokens, _ = backbone.loss(batch)
    (loss / tokens).backward()
    return {n: p.grad.clone() for n, p in backbone.model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("name", GENERATORS)
def test_checkpointed_gradients_equal_those_that_keep_everything(attached, batch_of, name, quant):
    backbone, _ = attached(name, quant=quant, projector="full" if name in SEEING else "frozen")
    batch = batch_of(backbone)
    without_dropout(backbone.model.train())
    kept = gradients(backbone, batch)
    calls = count_calls(backbone, backbone.family.layers[-1])
    kbit.checkpoint_language(backbone.core, backbone.family)
    again = gradients(backbone, batch)
    assert calls == {0: 2, 1: 2}  # once forward, once in the backward pass
    assert kept.keys() == again.keys()
    for key, value in kept.items():
        torch.testing.assert_close(again[key], value, atol=1e-6, rtol=1e-6, msg=key)


def count_calls(backbone, path):
    """Forward calls of what is inside each layer of a list."""
    calls = {}
    for index, layer in enumerate(backbone.part(path)):
        inside = next(m for m in layer.modules() if isinstance(m, nn.Linear))
        inside.register_forward_hook(lambda *_, i=index: calls.__setitem__(i, calls.get(i, 0) + 1))
    return calls


def test_dropout_is_drawn_again_as_it_was(attached, batch_of):
    backbone, _ = attached("florence-2-base")
    batch = batch_of(backbone)
    backbone.model.train()
    torch.manual_seed(3)
    kept = gradients(backbone, batch)
    kbit.checkpoint_language(backbone.core, backbone.family)
    torch.manual_seed(3)
    again = gradients(backbone, batch)
    torch.manual_seed(4)
    other = gradients(backbone, batch)
    assert all(torch.allclose(again[key], kept[key], atol=1e-6) for key in kept)
    assert not all(torch.allclose(other[key], kept[key], atol=1e-6) for key in kept)


def test_layers_of_the_tower_are_not_checkpointed(loaded):
    for name in SEEING:
        backbone = loaded(name)
        kbit.prepare(backbone.core, backbone.family, checkpoint_layers=True)
        marked = {n for n, m in backbone.core.named_modules() if getattr(m, "gradient_checkpointing", False)}
        assert marked == {f"{path}.{i}" for path in backbone.family.layers for i in range(len(backbone.part(path)))}, (
            name
        )


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("name", GENERATORS)
def test_no_input_is_made_to_want_a_gradient(loaded, batch_of, name, quant):
    """Peft would hook the token table, and transformers each nested tower, of a model that is checkpointed."""
    backbone = attach(loaded(name, quant=quant), AdapterConfig(kind="lora", quant=quant, r=4), checkpoint_layers=True)
    backbone.model.train()
    wanting = []
    tables = [m for m in backbone.core.modules() if isinstance(m, nn.Embedding | nn.Conv2d | nn.Conv3d)]
    handles = [m.register_forward_hook(lambda _, args, out: wanting.append(out.requires_grad)) for m in tables]
    loss, _, _ = backbone.loss(batch_of(backbone))
    assert len(wanting) >= 1
    assert not any(wanting)
    for handle in handles:
        handle.remove()
    loss.backward()
    assert all(p.grad is not None for p in backbone.model.parameters() if p.requires_grad)


def tower_output(backbone, batch):
    """What the tower itself gives, before the projector, with the mode it ran in."""
    seen = []
    part = kbit._parts_without_projector(backbone.core, backbone.family)[-1]
    handle = part.register_forward_hook(lambda module, args, output: seen.append((output, module.training)))
    loss, _, _ = backbone.loss(batch)
    handle.remove()
    output, was_training = seen[0]
    while not torch.is_tensor(output):
        output = output[0]
    return output, was_training, loss


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "full"])
@pytest.mark.parametrize("name", SEEING)
def test_a_frozen_tower_keeps_no_graph_even_where_its_inputs_want_a_gradient(attached, batch_of, name, mode):
    backbone, _ = attached(name, projector=mode)
    batch = batch_of(backbone)
    batch.inputs["pixel_values"].requires_grad_(True)  # as an input-gradient hook would make it
    output, was_training, loss = tower_output(backbone, batch)
    assert output.grad_fn is None
    assert not output.requires_grad
    assert torch.is_grad_enabled()
    loss.backward()
    assert batch.inputs["pixel_values"].grad is None
    projector = [p.grad for p in backbone.part(backbone.family.projector).parameters() if p.requires_grad]
    assert (mode == "full") == (len(projector) > 0)
    assert all(grad is not None and grad.count_nonzero() for grad in projector)
    assert not was_training


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_a_tower_that_is_unfrozen_later_trains(attached, batch_of, name):
    backbone, _ = attached(name)
    batch = batch_of(backbone)
    backbone.loss(batch)
    backbone.part(backbone.family.vision).requires_grad_(True)
    output, was_training, loss = tower_output(backbone, batch)
    assert output.grad_fn is not None
    loss.backward()
    reached = [p for p in backbone.part(backbone.family.vision).parameters() if p.grad is not None]
    assert sum(bool(p.grad.count_nonzero()) for p in reached) >= 5


def test_features_of_a_frozen_tower_are_the_same_in_training_as_in_evaluation(attached, batch_of):
    """Florence-2's tower drops whole blocks at random in training mode."""
    backbone, _ = attached("florence-2-base")
    batch = batch_of(backbone)
    backbone.model.eval()
    wanted, _, _ = tower_output(backbone, batch)
    for _ in range(3):
        backbone.model.train()
        assert torch.equal(tower_output(backbone, batch)[0], wanted)


def test_gradients_are_switched_back_on_after_an_error_in_the_tower(attached, batch_of):
    backbone, _ = attached("llava-1.5-7b")
    batch = batch_of(backbone)
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"][:, :1]
    with pytest.raises((RuntimeError, ValueError)):
        backbone.loss(batch)
    assert torch.is_grad_enabled()
    loss, _, _ = backbone.loss(batch_of(backbone))
    assert loss.requires_grad


def test_a_copied_model_uses_its_own_tower(attached, batch_of):
    backbone, _ = attached("llava-1.5-7b")
    batch = batch_of(backbone)
    twin = backbone.with_model(copy.deepcopy(backbone.model))
    with torch.no_grad():
        for parameter in twin.part("model.vision_tower").parameters():
            parameter.mul_(2)
    assert not torch.equal(tower_output(twin, batch)[0], tower_output(backbone, batch)[0])


def test_preparing_twice_is_preparing_once(loaded):
    backbone = loaded("llava-1.5-7b")
    kbit.prepare(backbone.core, backbone.family)
    kbit.prepare(backbone.core, backbone.family)
    assert len(backbone.part("model.vision_tower")._forward_pre_hooks) == 1


def test_a_model_that_trains_as_a_whole_can_be_checkpointed_too(loaded, batch_of):
    backbone = attach(loaded("unifiedqa-t5-base"), AdapterConfig(), checkpoint_layers=True)
    assert all(p.requires_grad for p in backbone.core.parameters())
    assert all(layer.gradient_checkpointing for layer in backbone.part("encoder.block"))
