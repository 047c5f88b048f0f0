"""A frozen base made ready for adapters: what is computed again, what keeps no graph, and what keeps its dtype.

This takes the place of peft's `prepare_model_for_kbit_training`, which turns every 16-bit parameter into float32
(embeddings, head and tower too: 3.5 GB more for Qwen2.5-VL-7B) and hooks the inputs of nested models so that they
require a gradient, which makes a frozen tower keep its whole graph. Here no dtype changes and no input is hooked.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightbox.backbones.families import Family


def prepare(model: nn.Module, family: Family, *, checkpoint_layers: bool = False) -> None:
    """Freeze a base in place; call it after the move to the device and before adapters are added.

    Args:
        model: a model of transformers, quantised or not.
        family: names of its parts.
        checkpoint_layers: compute layers of the language model again in the backward pass instead of keeping what is
            inside them.
    """
    model.requires_grad_(False)
    if checkpoint_layers:
        checkpoint_language(model, family)
    spare_frozen_tower(model, family)


def checkpoint_language(model: nn.Module, family: Family) -> None:
    """Checkpoint every layer in `family.layers`, encoder and decoder alike, and nothing else.

    The non-reentrant form is used: it gives gradients where no input of a layer requires one, as in the first layer of
    a frozen base, and draws dropout again as it was. It works in training mode only.
    """
    for path in family.layers:
        for layer in model.get_submodule(path).children():
            layer.gradient_checkpointing = True
            # set by hand: gradient_checkpointing_enable would turn on the tower's layers too
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def spare_frozen_tower(model: nn.Module, family: Family) -> None:
    """Let the vision tower run without a graph and without its dropout for as long as all of it is frozen.

    Whether it is frozen is asked again at every call, so unfreezing it later is enough to train it. Where the
    projector lies inside the tower (Qwen2-VL), the parts around it are treated one by one. A frozen part is set to
    evaluation mode: its features are constants, and stochastic depth (Florence-2 has it) would make noise of them.
    """
    if not family.has_vision:
        return
    for part in _parts_without_projector(model, family):
        if not hasattr(part, "_grad_modes"):
            part._grad_modes = []  # a list of plain values, so that a copied model has its own
            part.register_forward_pre_hook(_enter)
            # also after an error, or gradients would stay off for good
            part.register_forward_hook(_leave, always_call=True)


def _parts_without_projector(model: nn.Module, family: Family) -> list[nn.Module]:
    tower = model.get_submodule(family.vision)
    inside, _, rest = family.projector.partition(family.vision + ".")
    if inside or not rest:
        return [tower]
    parts: list[nn.Module] = []
    for name, child in tower.named_children():
        if name != rest:  # a list of blocks is never called itself
            parts += list(child) if isinstance(child, nn.ModuleList) else [child]
    return parts


def _enter(module: Any, args: tuple) -> None:
    is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
    if is_frozen and module.training:
        module.eval()
    module._grad_modes.append(torch.is_grad_enabled())
    if is_frozen:
        torch.set_grad_enabled(False)


def _leave(module: Any, args: tuple, output: Any) -> None:
    torch.set_grad_enabled(module._grad_modes.pop())
