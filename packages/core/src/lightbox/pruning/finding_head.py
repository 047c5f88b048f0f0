"""The finding map of a tower that has one: a small head, kept beside the weights, reads its patches.

`finding_topk` and `lesion_safe` take such a map from the caller. The tiny `llava-576` ships with its head.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightbox.backbones.llava import HAS_CLASS_TOKEN
from lightbox.backbones.weights import locate
from lightbox.errors import RequestError
from lightbox.pruning.models import core_of, family_of
from lightbox.pruning.types import ImageInputs

FILE = "finding_head.safetensors"
"""Beside the weights of a model; transformers reads model.safetensors only."""


class FindingHead(nn.Module):
    """How probable it is that a pixel shows a finding, by the patch that it lies in.

    Args:
        width: channels of a patch.
        patch_px: side of a patch in pixels.
    """

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, patch_px**2)
        self.patch_px = patch_px

    def forward(self, patches: Float[Tensor, "b p d"]) -> Float[Tensor, "b h w"]:
        """Probabilities in [0, 1] of the pixels of square images, from their patches row by row."""
        side = round(patches.shape[1] ** 0.5)
        logits = self.pixels(self.norm(patches))
        return rearrange(logits, "b (h w) (y x) -> b (h y) (w x)", h=side, y=self.patch_px).sigmoid()


def save_head(head: FindingHead, folder: Path) -> None:
    """Write a head beside its model's weights."""
    save_file({name: value.contiguous() for name, value in head.state_dict().items()}, folder / FILE)


def load_head(name: str, *, revision: str = "") -> FindingHead:
    """Read the head that lies beside weights, in evaluation mode and without gradients.

    Args:
        name: see `weights.locate`; a local folder.
        revision: of a hub id, which holds no head.

    Raises:
        RequestError: weights without a head.
    """
    folder = locate(name, revision=revision).folder
    if folder is None or not (folder / FILE).is_file():
        raise RequestError(
            f"A finding map of '{name}'",
            f"There is no {FILE} beside its weights, so nothing says where its tower sees a finding",
            "Name weights with such a head, as tiny/llava-576, or give prune() a finding_map of your own",
        )
    tensors = load_file(folder / FILE)
    n_pixels, width = tensors["pixels.weight"].shape
    head = FindingHead(width, round(n_pixels**0.5))
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)


def finding_map(model: Any, name: str) -> Callable[[ImageInputs], list[Tensor]]:
    """The finding map of a model's own tower, for the setting `finding_map` of `prune`.

    The tower runs a second time for it, in evaluation and without gradient; a caller who measures time should know.

    Args:
        model: a LLaVA of transformers with its language head, or a `Backbone`.
        name: of the weights that the head lies beside.

    Returns:
        Called with the inputs of `get_image_features`: one map an image, h w in [0, 1], of the pixels the tower sees.

    Raises:
        RequestError: weights without a head, another family than LLaVA, or a head for another tower.
    """
    core: Any = core_of(model)
    family, head = family_of(core), load_head(name)
    config = core.config.vision_config
    if family.name != "llava" or config.model_type not in HAS_CLASS_TOKEN:
        raise RequestError(
            f"A finding map of a {family.name} with a {config.model_type}",
            "Heads are kept for LLaVA on a CLIP tower, whose patches lie row by row behind a class token",
            "Give prune() a finding_map of your own",
        )
    if (config.hidden_size, config.patch_size) != (head.norm.normalized_shape[0], head.patch_px):
        raise RequestError(
            f"The head of '{name}' for a tower of width {config.hidden_size} with patches of {config.patch_size} px",
            f"The head reads width {head.norm.normalized_shape[0]} and patches of {head.patch_px} px",
            "Name the weights that the model was loaded from",
        )
    tower = core.get_submodule(family.vision)
    head.to(next(tower.parameters()).device)

    @torch.no_grad()
    def maps(inputs: ImageInputs) -> list[Tensor]:
        hidden = tower(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 1:]
        return list(head(hidden.float()))

    return maps
