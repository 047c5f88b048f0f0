"""Names inside a model that peft has wrapped, and the names they had before."""

import re

LORA_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")
PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+|token_adapter)(?=\.|$)")


def plain_name(name: str) -> str:
    """The name of a module or parameter as the model of transformers has it.

    Example:
        >>> plain_name("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
        'model.layers.0.mlp.up_proj.weight'
    """
    return _WRAPPERS.sub("", name.removeprefix(PREFIX))
