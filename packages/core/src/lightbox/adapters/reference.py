"""The reference of a preference or reward objective: the same weights with adapters off, or with a frozen adapter."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lightbox.adapters.lora import ADAPTER, widen_saved
from lightbox.errors import RequestError

BASE = "base"
OTHER = "adapter:"


@contextmanager
def reference(model: PeftModel, kind: str = BASE) -> Iterator[PeftModel]:
    """Let a model compute as its reference inside the context.

    Low-rank additions, the trained copy of a projector and rows of new tokens are all switched, so "base" gives the
    base's numbers bit by bit. Peft's own context also freezes every adapter on entry and makes it trainable on exit;
    here what requires a gradient does not change, and everything is restored after an error.

    Args:
        model: wrapped by peft.
        kind: "base" for adapters off, or "adapter:NAME" for another adapter, such as one kept by `keep_reference`.

    Raises:
        RequestError: while adapters are merged into the base, or for an adapter that is not there.
    """
    name = kind.removeprefix(OTHER) if kind.startswith(OTHER) else None
    if name is None and kind != BASE:
        raise RequestError(f"The reference is '{kind}'", f"It is {BASE} or {OTHER}NAME", "Give one of them")
    if name is not None and name not in model.peft_config:
        known = ", ".join(model.peft_config)
        raise RequestError(
            f"The reference is '{kind}'", f"The adapters here are {known}", "Keep one with keep_reference first"
        )
    refuse_merged(model)
    layers = _switches(model)
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        for layer in layers:
            if name is None:
                layer._disable_adapters = True
            else:
                layer._active_adapter = [name]
        yield model
    finally:
        for layer, (is_off, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = is_off, active


def keep_reference(model: PeftModel, name: str = "reference") -> None:
    """Copy the adapter as it is now into a second, frozen one, for a run that starts from supervised fine-tuning.

    Args:
        model: wrapped by peft, with one adapter.
        name: of the copy.

    Raises:
        RequestError: while merged, or where there is an adapter of that name.
    """
    refuse_merged(model)
    if name in model.peft_config:
        raise RequestError(f"The adapter '{name}'", "There is one of that name already", "Give another name")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng():  # the copy's own start is drawn and overwritten
        model.add_adapter(name, copy.deepcopy(model.peft_config[ADAPTER]))
    widen_saved(model, name)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, parameter in own.items():
            if f".{ADAPTER}." in f"{key}.":
                own[_renamed(key, name)].copy_(parameter)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)


def refuse_merged(model: nn.Module) -> None:
    """Raise `RequestError` where additions are merged into a layer's base."""
    merged = [name for name, m in model.named_modules() if isinstance(m, BaseTunerLayer) and m.merged]
    if merged:
        raise RequestError(
            f"Adapters are merged into {len(merged)} layers, the first is {merged[0]}",
            "The base's own weights are gone then, and taking a quantised layer apart again is lossy",
            "Keep adapters apart; merge.merge_to_16_bit writes a merged copy to a folder",
        )


def _renamed(key: str, name: str) -> str:
    head, _, tail = f"{key}.".rpartition(f".{ADAPTER}.")
    return f"{head}.{name}.{tail}".rstrip(".")


def _switches(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
