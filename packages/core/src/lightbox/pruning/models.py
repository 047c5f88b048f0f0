"""Which models can be pruned, and that each is pruned by one block at a time."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightbox.backbones.families import BY_MODEL_TYPE, Family
from lightbox.errors import RequestError
from lightbox.pruning.layouts import LAYOUTS

_PRUNED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Models inside a block."""


def core_of(model: Any) -> nn.Module:
    """The model of transformers inside a backbone or wrapper."""
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            return model


def family_of(core: Any) -> Family:
    """The family of a model.

    Raises:
        RequestError: one without an adapter, or a model without its language head.
    """
    model_type = getattr(getattr(core, "config", None), "model_type", type(core).__name__)
    family = BY_MODEL_TYPE.get(model_type)
    if family is None or family.name not in LAYOUTS:
        raise RequestError(
            f"A model of type '{model_type}'",
            "How its image tokens lie is not known here",
            f"Prune one of {', '.join(LAYOUTS)}",
        )
    if type(core).__name__ != family.model_class:
        raise RequestError(
            f"A {type(core).__name__}",
            "Prompts are shortened where labels and logits are, at the model with its language head",
            f"Load it as {family.model_class}, or by AutoModelForImageTextToText",
        )
    return family


def check_free(core: nn.Module) -> None:
    """Refuse a model that is inside a block.

    Raises:
        RequestError: it is.
    """
    if core in _PRUNED:
        raise RequestError(
            f"A {type(core).__name__} that is being pruned",
            "A second method would choose among what the first left, and neither budget would hold",
            "Leave the first block before entering another",
        )


@contextmanager
def held(core: nn.Module) -> Iterator[None]:
    """Hold a model for one block.

    Raises:
        RequestError: another block holds it.
    """
    check_free(core)
    _PRUNED.add(core)
    try:
        yield
    finally:
        _PRUNED.discard(core)
