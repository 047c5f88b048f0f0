"""A network of more weights that begins as the function that it was: a control of size."""

from typing import Any

from torch import nn


def widen_networks(model: nn.Module, *, layers: str, factor: int = 2) -> nn.Module:
    """Give each feed-forward network of a decoder `factor` times its hidden units, in place.

    Its own units come first. Those behind them are drawn from torch's generator as loud as they are, and add nothing
    until they have learnt to (function-preserving as in Net2Net, arXiv 1511.05641, which copies units instead).

    Args:
        model: with a configuration, whose width changes too, so that it is saved and read at its new one.
        layers: path of the list of layers, whose networks are plain gated ones (gate_proj, up_proj, down_proj).
        factor: >= 2.
    """
    config: Any = model.config
    config = config.get_text_config()
    config.intermediate_size *= factor
    stack: Any = model.get_submodule(layers)
    for layer in stack:
        own: nn.Module = layer.mlp
        like = next(own.parameters())
        layer.mlp = type(own)(config).to(like.device, like.dtype)
        for name, weight in layer.mlp.named_parameters():
            before = own.get_parameter(name).detach()
            rows, columns = before.shape
            if name.startswith("down_proj"):
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight, std=float(before.std()))
            weight.data[:rows, :columns] = before
    return model
