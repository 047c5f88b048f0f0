"""The plain model inside a wrapped or quantised one: names as transformers has them, weights of layers in full.

bitsandbytes dequantises to the dtype that a model was loaded in; here to the one that is wanted, so that a merged layer
is rounded once, when it is stored.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from lightbox.backbones.quantisation import quantised_as
from lightbox.errors import WorkError

LORA_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")  # the magnitude is DoRA's
PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+|token_adapter)(?=\.|$)")


def plain_name(name: str) -> str:
    """The name of a module or parameter as the model of transformers has it, before peft wrapped it.

    Example:
        >>> plain_name("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
        'model.layers.0.mlp.up_proj.weight'
    """
    return _WRAPPERS.sub("", name.removeprefix(PREFIX))


@torch.no_grad()
def dense_weight(layer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight of a linear layer, out in, in `dtype`, on its device, without gradient.

    NF4: w = code[index] * scale of its block of 64; int8: w = index * scale of its row / 127.

    Raises:
        WorkError: where an evaluation repacked the weights (see `quantisation.keep_unpacked`).
    """
    weight: Any = layer.weight
    way = quantised_as(layer)
    if way == "none":
        return weight.detach().to(dtype)
    if way == "int8":
        return weight.detach().to(dtype) * (row_scales(layer) / 127).to(dtype).unsqueeze(1)
    refuse_packed({"a layer": layer})
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415  a model in 16 bit never imports it

    state = copy.copy(weight.quant_state)
    state.dtype = dtype
    return dequantize_4bit(weight.detach(), state)


def row_scales(layer: Any) -> Tensor:
    """Largest magnitude of each row of an int8 layer; the first forward moves it from the weight to the layer."""
    scales = layer.state.SCB
    return layer.weight.SCB if scales is None else scales


def refuse_packed(layers: Mapping[str, Any]) -> None:
    """Raise `WorkError` where an evaluation on the CPU rewrote the weights of 4-bit layers for its kernel."""
    states = {name: getattr(layer.weight, "quant_state", None) for name, layer in layers.items()}
    packed = [name for name, state in states.items() if getattr(state, "packing_format_for_cpu", False)]
    if packed:
        raise WorkError(
            f"The 4-bit weights of {len(packed)} layers were repacked by an evaluation on the CPU, "
            f"the first is {packed[0]}",
            "Repacking rounds their scales, so they are no longer the weights that the adapter was trained on",
            "Load the base again with lightbox.backbones.loading.load, or call quantisation.keep_unpacked before the "
            "first forward",
        )


def todays_name(model: PreTrainedModel) -> Callable[[str], str]:
    """What turns a name of an older file into that of the loaded model, by the renaming that transformers applies."""
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    return lambda name: rename_source_key(name, renamings, [])[0]
