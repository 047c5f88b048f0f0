"""Frozen vision towers by name: images in, features out. CLIP, SigLIP, MedSigLIP, ViT, DINOv2, DETR share one path.

All give one feature a patch but DETR, which gives one an object query, so always as many.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import CLIPVisionModel, DetrModel, Dinov2Model, PreTrainedModel, SiglipVisionModel, ViTModel

from lightbox.backbones import weights
from lightbox.backbones.detr import detr_config, dilate_last_stage
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError

BATCH = 128
PIXELS = BATCH * 224**2
"""Images are encoded by batches of BATCH, or fewer where they hold more pixels than this together."""
KEY = "model.tower"
"""Config key that gives the name, for messages."""
PREPROCESSOR = "preprocessor_config.json"
DETR_PX = 800
"""Side where neither configuration names one, which only DETR's may leave out."""
UNREAD = ("pooler", "head")
"""Parts that only serve pooled outputs, which are not read here; a file may lack them."""


@dataclass(frozen=True)
class Family:
    """How a family is loaded: its class, and how many leading tokens are no patches (class token)."""

    model_class: type[PreTrainedModel]
    prefix_tokens: int


FAMILIES = {
    "clip_vision_model": Family(CLIPVisionModel, 1),
    "clip": Family(CLIPVisionModel, 1),
    "siglip_vision_model": Family(SiglipVisionModel, 0),
    "siglip": Family(SiglipVisionModel, 0),
    "vit": Family(ViTModel, 1),
    "dinov2": Family(Dinov2Model, 1),
    "detr": Family(DetrModel, 0),
}


@dataclass(frozen=True)
class Tower:
    """A frozen tower.

    Args:
        model: in evaluation mode, without gradients.
        width: channels of a feature.
        image_px: side of the square that images are resized to.
        digest: identifies weights and preprocessing, for caches and job keys.
        mean, std: per colour, of values in [0, 1].
        prefix_tokens: leading tokens that are no patches.
    """

    model: nn.Module
    width: int
    image_px: int
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    prefix_tokens: int

    @torch.inference_mode()
    def encode(self, images: UInt8[Tensor, "b h w"]) -> Float[Tensor, "b p d"]:
        """Features of the patches of grey images, row by row, from the last layer; no gradient.

        A DETR gives the last layer of its decoder instead: one feature an object query, in no order of place.

        Args:
            images: 0..255 (grey); resized bilinearly where their side is not `image_px`.
        """
        # a whole split at once would hold all activations
        parts = [self._encode(part) for part in images.split(max(1, min(BATCH, PIXELS // self.image_px**2)))]
        return torch.cat(parts)

    def _encode(self, images: Tensor) -> Tensor:
        pixels = images.to(next(self.model.parameters()).device)[:, None].float() / 255  # b 1 h w
        if pixels.shape[-2:] != (self.image_px, self.image_px):
            side = (self.image_px, self.image_px)
            # antialiased as PIL does: a shrunk image would show patterns that no tower was trained on
            pixels = F.interpolate(pixels, side, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (pixels.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        pixels = (pixels.expand(-1, len(self.mean), -1, -1) - mean) / std  # b 3 h w: grey on every colour
        return self.model(pixel_values=pixels).last_hidden_state[:, self.prefix_tokens :]


def load_tower(name: str, revision: str = "") -> Tower:
    """Load a frozen tower in float32 on the CPU.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.

    Raises:
        RequestError: not there, not of a known family, or without safetensors.
    """
    place = weights.locate(name, revision=revision, key=KEY)
    config, preprocessing = _description(place, weights.CONFIG), _description(place, PREPROCESSOR)
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise RequestError(
            f"{KEY} is '{name}', a {config.get('model_type', 'model without model_type')}",
            f"The towers known here are {', '.join(FAMILIES)}",
            f"Set {KEY} to one of those families, or give ready features with model.features",
        )
    is_detr = family.model_class is DetrModel
    own: dict[str, Any] = {}
    with quiet_loading():
        if is_detr:
            own["config"], own["key_mapping"] = detr_config(config, request=f"{KEY} is '{name}'")
        loaded: Any = family.model_class.from_pretrained(
            place.source,
            revision=place.revision or "main",
            use_safetensors=True,
            trust_remote_code=False,
            dtype="float32",
            output_loading_info=True,
            **own,
        )
    model, loading_info = loaded
    # transformers draws them at random and only warns
    missing = sorted(name for name in loading_info["missing_keys"] if not name.startswith(UNREAD))
    if missing:
        raise RequestError(
            f"{KEY} is '{name}', read as {family.model_class.__name__}",
            f"Its file lacks {len(missing)} tensors, the first is {missing[0]}: the tower would be random",
            "Use weights of that architecture",
        )
    if is_detr and config.get("dilation"):
        dilate_last_stage(model)
    return Tower(
        model=model.eval().requires_grad_(False),
        width=model.config.hidden_size,
        image_px=_side(preprocessing, getattr(model.config, "image_size", DETR_PX)),
        digest=weights.digest_of(name, revision=revision, key=KEY),
        mean=_per_colour(preprocessing.get("image_mean", 0.5)),  # the default of ViT and SigLIP
        std=_per_colour(preprocessing.get("image_std", 0.5)),
        prefix_tokens=family.prefix_tokens,
    )


def _description(place: weights.Place, file: str) -> dict:
    """A JSON file of a folder or hub id; empty where there is none."""
    if place.folder is not None:
        path = place.folder / file
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    try:
        return json.loads(
            Path(hf_hub_download(place.source, file, revision=place.revision)).read_text(encoding="utf-8")
        )
    except EntryNotFoundError:
        return {}


def _side(preprocessing: dict, image_px: int) -> int:
    size = preprocessing.get("crop_size") or preprocessing.get("size") or image_px
    if isinstance(size, dict):
        return int(size.get("height") or size.get("shortest_edge") or image_px)
    return int(size)


def _per_colour(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)
