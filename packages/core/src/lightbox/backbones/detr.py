"""DETR with a ResNet, read without the package timm: configuration, tensor names, and the dilated last stage.

Most published files name their ResNet as timm does (`layer1.0.conv1`), which transformers reads through timm only. The
network is the same as transformers' own ResNet, so its names are translated here.
"""

from collections.abc import Mapping
from typing import Any

from transformers import DetrConfig, DetrModel, ResNetConfig

from lightbox.errors import RequestError

RESNETS: dict[str, dict[str, Any]] = {
    "resnet50": {"depths": [3, 4, 6, 3]},
    "resnet101": {"depths": [3, 4, 23, 3]},
}
"""timm's name -> fields of transformers' ResNetConfig."""
_TIMM = r"conv_encoder\.model\."
_OURS = "conv_encoder.model."


def detr_config(config: Mapping[str, Any], *, request: str) -> tuple[DetrConfig, dict[str, str]]:
    """Configuration of a DETR on transformers' ResNet, and the names to translate while its file is read.

    Args:
        config: config.json.
        request: what the user asked for, for messages.

    Returns:
        The configuration, and pattern -> replacement, empty where the file has transformers' own names.

    Raises:
        RequestError: a convolutional part that is no ResNet of `RESNETS`.
    """
    inner = config.get("backbone_config") or {}
    if inner.get("model_type") == "resnet":
        return DetrConfig(**config), {}
    # transformers takes resnet50 where none is named
    name = inner.get("backbone") or config.get("backbone") or "resnet50"
    if name not in RESNETS:
        raise RequestError(
            f"{request}, a DETR on '{name}'",
            f"The convolutional parts known here are {', '.join(RESNETS)}",
            "Use one of those, or a revision whose config.json has a backbone_config of model_type resnet",
        )
    left = {"backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone"}
    values = {key: value for key, value in config.items() if key not in left}
    resnet = RESNETS[name] | {"out_features": ["stage4"]}
    # the network is the same; only names differ, see `_timm_names`
    values |= {"use_timm_backbone": False, "backbone_config": ResNetConfig(**resnet)}
    return DetrConfig(**values), _timm_names()


def dilate_last_stage(model: DetrModel) -> None:
    """Give the last ResNet stage its input's resolution (DC5): its stride becomes a dilation. No weight changes.

    The first block keeps dilation 1, the others get 2, as torchvision and timm do it.
    """
    first, *others = model.backbone.model.encoder.stages[-1].layers
    first.shortcut.convolution.stride = (1, 1)
    first.layer[1].convolution.stride = (1, 1)
    for block in others:
        block.layer[1].convolution.dilation = block.layer[1].convolution.padding = (2, 2)


def _timm_names() -> dict[str, str]:
    """Names of timm's ResNet with bottlenecks -> those of transformers'."""
    names = {
        rf"{_TIMM}conv1\.": f"{_OURS}embedder.embedder.convolution.",
        rf"{_TIMM}bn1\.": f"{_OURS}embedder.embedder.normalization.",
    }
    for stage in range(4):
        block = rf"{_TIMM}layer{stage + 1}\.(\d+)\."
        ours = rf"{_OURS}encoder.stages.{stage}.layers.\1."
        for place in range(3):
            names[rf"{block}conv{place + 1}\."] = f"{ours}layer.{place}.convolution."
            names[rf"{block}bn{place + 1}\."] = f"{ours}layer.{place}.normalization."
        names[rf"{block}downsample\.0\."] = f"{ours}shortcut.convolution."
        names[rf"{block}downsample\.1\."] = f"{ours}shortcut.normalization."
    return names
