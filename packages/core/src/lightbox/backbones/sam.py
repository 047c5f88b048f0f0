"""SAM and SAM 2 as segmenters: an image and a box in, one mask out; the mask decoder can be trained.

SAM scales an image by its longer side and fills the square up at the bottom and right; SAM 2 stretches it to the
square. Only the mask that SAM gives to an unambiguous prompt is used (the first of its four), and only what that mask
needs is trained: encoder, prompt encoder, the other masks' heads and the estimates of quality stay as they are.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.losses import DiceCELoss
from PIL import Image
from torch import Tensor, nn
from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, SamConfig, SamImageProcessor, SamModel

from lightbox.backbones import weights
from lightbox.backbones.hooks import in_colour
from lightbox.backbones.mask_batch import MaskBatch, checked_boxes, dice_scores, mask_tensors
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DECODER = "mask_decoder."
UNTRAINED = tuple(
    DECODER + part
    for part in ("iou_prediction_head", "pred_obj_score_head", *(f"output_hypernetworks_mlps.{k}" for k in (1, 2, 3)))
)
"""Parts of the decoder that the one mask of a box does not go through."""


@dataclass(frozen=True)
class Kind:
    """How a model type is read: its classes, and whether images keep their shape."""

    model_class: Any
    config_class: Any
    processor_class: Any
    keeps_shape: bool


SAM = Kind(SamModel, SamConfig, SamImageProcessor, keeps_shape=True)
SAM_2 = Kind(Sam2Model, Sam2Config, Sam2ImageProcessor, keeps_shape=False)
KINDS = {"sam": SAM, "sam2": SAM_2, "sam2_video": SAM_2}
"""model_type of config.json -> how it is read. The image part of a SAM 2 that was published for video is read alone."""


class Segmenter:
    """A SAM or SAM 2 with its image processor.

    Args:
        model: of transformers.
        processor: of images.
        kind: how its type is read.
        name, revision: what was loaded.
        digest: identifies the weights, for job keys.
        dtype: of weights and of image inputs.
    """

    def __init__(
        self, model: nn.Module, processor: Any, kind: Kind, *, name: str, revision: str, digest: str, dtype: torch.dtype
    ) -> None:
        self.model, self.processor, self.kind = model, processor, kind
        self.name, self.revision, self.digest, self.dtype = name, revision, digest, dtype
        self.mask_loss = DiceCELoss(sigmoid=True)

    def with_model(self, model: nn.Module) -> Self:
        """The same segmenter around a wrapped model: `forward` goes through the wrapper."""
        other = copy.copy(self)
        other.model = model
        return other

    def prepare(
        self,
        images: Sequence[Image.Image],
        boxes_xyxy_frac: Sequence[Sequence[float]],
        masks: Sequence[np.ndarray] | None = None,
    ) -> MaskBatch:
        """Turn items into a batch on the CPU.

        Args:
            images: 8-bit grey or colour, one an item; an image with several boxes is given once for each.
            boxes_xyxy_frac: x0, y0, x1, y1 as fractions of the image.
            masks: boolean, of the size of its image.

        Raises:
            RequestError: counts or sizes that differ, a box that is none, or images that are not 8-bit.
        """
        counts = {len(images), len(boxes_xyxy_frac), len(images if masks is None else masks)}
        if len(counts) != 1 or not images:
            raise RequestError(
                f"{len(images)} images, {len(boxes_xyxy_frac)} boxes, {'no' if masks is None else len(masks)} masks",
                "An item has one of each, and a batch at least one item",
                "Give as many of each; repeat an image that has several boxes",
            )
        image_hw = [(image.height, image.width) for image in images]
        encoded = self.processor([in_colour(image) for image in images], return_tensors="pt")
        pixels = encoded["pixel_values"].to(self.dtype)
        seen = encoded["reshaped_input_sizes"].tolist() if self.kind.keeps_shape else [pixels.shape[-2:]] * len(images)
        boxes = [
            [[x0 * width, y0 * height, x1 * width, y1 * height]]
            for (x0, y0, x1, y1), (height, width) in zip(checked_boxes(boxes_xyxy_frac), seen, strict=True)
        ]
        return MaskBatch(
            pixel_values=pixels,
            boxes_xyxy_px=torch.tensor(boxes, dtype=torch.float32),
            seen_hw=[(int(height), int(width)) for height, width in seen],
            image_hw=image_hw,
            masks=None if masks is None else mask_tensors(masks, image_hw),
        )

    def logits(self, batch: MaskBatch) -> list[Float[Tensor, "h w"]]:
        """Mask logits at the size of each image, with gradient; above 0 is inside.

        Args:
            batch: on the model's device.
        """
        small = (
            self.model(pixel_values=batch.pixel_values, input_boxes=batch.boxes_xyxy_px, multimask_output=False)
            .pred_masks[:, 0]
            .float()
        )  # b 1 h w, at a quarter of the model's resolution
        square = F.interpolate(small, batch.pixel_values.shape[-2:], mode="bilinear", align_corners=False)
        sizes = zip(square, batch.seen_hw, batch.image_hw, strict=True)
        return [
            F.interpolate(mask[None, :, : seen[0], : seen[1]], image, mode="bilinear", align_corners=False)[0, 0]
            for mask, seen, image in sizes
        ]

    def loss(self, batch: MaskBatch) -> tuple[Float[Tensor, ""], Tensor, dict[str, Tensor]]:
        """Sum over items the Dice loss plus the binary cross-entropy of pixels, both of MONAI, each in [0, inf).

        Args:
            batch: on the model's device, with masks.

        Returns:
            The sum, with gradient; the number of items; detached diagnostics: the mean Dice of the masks as predicted.

        Raises:
            RequestError: a batch without masks.
        """
        if batch.masks is None:
            raise RequestError(
                "A batch without masks", "There is nothing to compute a loss of", "Prepare it with masks"
            )
        logits = self.logits(batch)
        pairs = zip(logits, batch.masks, strict=True)
        losses = [self.mask_loss(logit[None, None], mask[None, None].float()) for logit, mask in pairs]
        scores = dice_scores([logit.detach() > 0 for logit in logits], batch.masks)
        count = torch.tensor(len(losses), device=losses[0].device)
        return torch.stack(losses).sum(), count, {"dice": torch.tensor(scores).mean()}

    @torch.no_grad()
    def segment(
        self, images: Sequence[Image.Image], boxes_xyxy_frac: Sequence[Sequence[float]], *, batch_size: int = 8
    ) -> list[Float[Tensor, "h w"]]:
        """Mask logits of boxes at the size of their images, on the CPU, in order; above 0 is inside.

        Args:
            images: as in `prepare`.
            boxes_xyxy_frac: as in `prepare`.
            batch_size: items at once; changes the time, and logits only by rounding.

        Raises:
            RequestError: as in `prepare`.
        """
        device = next(self.model.parameters()).device
        found: list[Tensor] = []
        for start in range(0, max(len(images), len(boxes_xyxy_frac)), batch_size):
            here = slice(start, start + batch_size)
            found += [mask.cpu() for mask in self.logits(self.prepare(images[here], boxes_xyxy_frac[here]).to(device))]
        return found


def load_segmenter(
    name: str, revision: str = "", *, dtype: str = "fp32", device: str = "cpu", key: str = "model.segmenter"
) -> Segmenter:
    """Load a SAM or SAM 2 in evaluation mode; of its parameters only those train that the mask of a box goes through.

    SAM 2 takes another of its masks in evaluation where the first looks unstable. That is switched off: training does
    not reach the others, so a trained model would answer with an untrained mask.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.
        dtype: fp32, bf16 or fp16, whatever the file holds.
        device: cpu, cuda or cuda:N.
        key: config key that gave the name, for messages.

    Raises:
        RequestError: not there, not of a known type, without safetensors, or a file without some of the tensors.
    """
    place = weights.locate(name, revision=revision, key=key)
    given = f"{key} is '{name}'"
    with quiet_loading():
        shared = {"revision": place.revision} if place.revision else {}
        values, _ = SamConfig.get_config_dict(place.source, **shared)
        kind = KINDS.get(values.get("model_type", ""))
        if kind is None:
            raise RequestError(
                f"{given}, a {values.get('model_type', 'model without model_type')}",
                f"The segmenters known here are {', '.join(KINDS)}",
                f"Set {key} to one of those",
            )
        model, found = kind.model_class.from_pretrained(
            place.source,
            config=_image_config(kind, values),
            use_safetensors=True,
            trust_remote_code=False,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            **shared,
        )
        processor = kind.processor_class.from_pretrained(place.source, **shared)
    if found["missing_keys"]:
        raise RequestError(
            f"{given}, read as {kind.model_class.__name__}",
            f"Its file lacks {len(found['missing_keys'])} tensors, such as {min(found['missing_keys'])}",
            "Use weights of that architecture",
        )
    model.mask_decoder.dynamic_multimask_via_stability = False
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path.startswith(DECODER) and not path.startswith(UNTRAINED))
    digest = weights.digest_of(name, revision=revision, key=key)
    return Segmenter(
        model.eval().to(device), processor, kind, name=name, revision=revision, digest=digest, dtype=DTYPES[dtype]
    )


def _image_config(kind: Kind, values: dict[str, Any]) -> Any:
    """The configuration of the image model; a video model's has the same parts under other type names."""
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    left = {
        part: {key: v for key, v in values[part].items() if key != "model_type"} for part in parts if part in values
    }
    return kind.config_class(**left)
