"""Frozen vision towers by name: images in, features out. CLIP, SigLIP, MedSigLIP, ViT, DINOv2, DETR share one path.

All give one feature a patch but DETR, which gives one an object query, so always as many.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    CLIPVisionModel,
    DetrModel,
    Dinov2Model,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
    ViTModel,
)

from lightbox.backbones import weights
from lightbox.backbones.conversation import check_image, in_colour
from lightbox.backbones.detr import detr_config, dilate_last_stage
from lightbox.backbones.matching import check_tensors
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError

BATCH = 128
PIXELS = BATCH * 224**2
"""Images are encoded by batches of BATCH, or fewer where they hold more pixels than this together."""
KEY = "model.tower"
"""Config key that gives the name, for messages."""
UNREAD = "pooler|head"
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
        processor: of transformers, as it was published beside the weights; it resizes and crops.
        width: channels of a feature.
        digest: identifies weights and preprocessing, for caches and job keys.
        prefix_tokens: leading tokens that are no patches.
    """

    model: nn.Module
    processor: Any
    width: int
    digest: str
    prefix_tokens: int

    @torch.inference_mode()
    def encode(
        self, images: UInt8[Tensor, "b h w"] | UInt8[Tensor, "b h w c"] | Sequence[Image.Image]
    ) -> Float[Tensor, "b p d"]:
        """Features of the patches of images, row by row, from the last layer; no gradient.

        A DETR gives the last layer of its decoder instead: one feature an object query, in no order of place.

        Args:
            images: 0..255, grey or with three colours; those of a sequence may differ in size, and are asked for one
                by one, so that a sequence can decode them late.

        Raises:
            RequestError: no images, or what no tower reads: 16 bits, a strip.
        """
        features: list[Tensor] = []
        batch: list[Tensor] = []
        for pixels in map(self._seen, images):
            # a whole split at once would hold all activations; sizes are not mixed, as a DETR's features of an image
            # that is filled up to the size of another would depend on that other
            most = max(1, min(BATCH, PIXELS // pixels[0].numel()))
            if batch and (pixels.shape != batch[0].shape or len(batch) == most):
                features.append(self._encode(batch))
                batch = []
            batch.append(pixels)
        if not batch:
            raise RequestError("No images", "There is nothing to encode", "Give at least one")
        return torch.cat([*features, self._encode(batch)])

    def _seen(self, image: Tensor | Image.Image) -> UInt8[Tensor, "c h w"]:
        """An image in colour, as the processor resizes and crops it."""
        image = Image.fromarray(image.cpu().numpy()) if isinstance(image, Tensor) else image
        check_image(image, "An image for a tower")
        # what a processor makes of the values differs from `_encode` in the last bit, and results rest on that bit
        skip = {"do_rescale": False, "do_normalize": False, "do_pad": False}
        return self.processor(in_colour(image), return_tensors="pt", **skip).pixel_values[0]

    def _encode(self, batch: list[Tensor]) -> Tensor:
        pixels = torch.stack(batch).to(next(self.model.parameters()).device).float()  # b 3 h w
        mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.processor.image_mean, self.processor.image_std))
        pixels = (pixels / (1 / self.processor.rescale_factor) - mean) / std
        return self.model(pixel_values=pixels).last_hidden_state[:, self.prefix_tokens :]


def load_tower(name: str, revision: str = "") -> Tower:
    """Load a frozen tower in float32 on the CPU.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.

    Raises:
        RequestError: not there, not of a known family, without safetensors or preprocessing, or weights that do not
            fit their config.
    """
    place = weights.locate(name, revision=revision, key=KEY)
    shared: dict[str, Any] = {"trust_remote_code": False, "revision": place.revision or "main"}
    config = PreTrainedConfig.get_config_dict(place.source, **shared)[0]
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise RequestError(
            f"{KEY} is '{name}', a {config.get('model_type', 'model without model_type')}",
            f"The towers known here are {', '.join(FAMILIES)}",
            f"Set {KEY} to one of those families, or give ready features with model.features",
        )
    is_detr, request = family.model_class is DetrModel, f"{KEY} is '{name}'"
    own: dict[str, Any] = {}
    with quiet_loading():
        if is_detr:
            own["config"], own["key_mapping"] = detr_config(config, request=request)
        loaded: Any = family.model_class.from_pretrained(
            place.source,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named and refused below, as are tensors that are not there
            **shared,
            **own,
        )
    model, loading_info = loaded
    check_tensors(loading_info, family.model_class.__name__, request, may_lack=UNREAD, may_hold_more=True)
    if is_detr and config.get("dilation"):
        dilate_last_stage(model)
    processor = image_processor(place, request)
    if not (processor.do_rescale and processor.do_normalize):
        raise RequestError(
            f"{request}, whose preprocessor_config.json leaves values as they are",
            "Every tower known here was trained on values with mean and spread of its own taken out",
            "Use the file that was published with the weights",
        )
    return Tower(
        model=model.eval().requires_grad_(False),
        processor=processor,
        width=model.config.hidden_size,
        digest=weights.digest_of(name, revision=revision, key=KEY),
        prefix_tokens=family.prefix_tokens,
    )


def image_processor(place: weights.Place, request: str) -> Any:
    """The image processor that was published beside weights.

    Raises:
        RequestError: there is none, with the request in words.
    """
    with quiet_loading():
        try:
            return AutoImageProcessor.from_pretrained(
                place.source, revision=place.revision or "main", trust_remote_code=False
            )
        except (OSError, ValueError) as err:  # no such file, or one that names no processor
            raise RequestError(
                request,
                "No preprocessor_config.json beside its weights says how it sees an image",
                "Put the file that was published with the weights there",
            ) from err
