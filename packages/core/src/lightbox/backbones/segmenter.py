"""SAM in two calls: images are embedded once, masks are decoded for any number of prompts.

A prompt says what to cut out: points, a box, a coarse mask, or embeddings that a caller made itself, such as a language
model's state. Places are fractions of the image, as everywhere. SAM-Med2D is read as `lightbox data convert` writes it;
SAM-HQ and SAM 2 are other layouts and are not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, SamModel

from lightbox.backbones import weights
from lightbox.backbones.conversation import check_image, in_colour
from lightbox.backbones.matching import check_tensors
from lightbox.backbones.sam_adapters import AdaptedSamConfig, AdaptedSamModel
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.towers import image_processor
from lightbox.errors import RequestError
from lightbox.records import Box, check_box

KEY = "model.segmenter"
"""Config key that gives the name, for messages."""
CLASSES: dict[str, type[SamModel]] = {"sam": SamModel, AdaptedSamConfig.model_type: AdaptedSamModel}


@dataclass(frozen=True)
class ImageEmbeddings:
    """Images as SAM's encoder sees them.

    Args:
        features: on the model's device.
        image_hw: rows and columns of each image.
        frame_hw: those that each image has in the square that was encoded; the rest of the square is filling.
    """

    features: Float[Tensor, "b d h w"]
    image_hw: list[list[int]]
    frame_hw: list[list[int]]


@dataclass(frozen=True)
class Masks:
    """Masks of n prompts: one each, or three where several were asked for.

    Args:
        logits: for each prompt c h w, at the size of its image; above 0 is inside.
        low_res_logits: of the whole square, at a quarter of its side; a coarse mask for a next round of prompts.
        iou: the decoder's own estimate of each mask's overlap with what was meant.
    """

    logits: list[Float[Tensor, "c h w"]]
    low_res_logits: Float[Tensor, "n c h w"]
    iou: Float[Tensor, "n c"]


@dataclass(frozen=True)
class Segmenter:
    """A SAM.

    Args:
        model: in evaluation mode.
        processor: of transformers, as it was published beside the weights.
        digest: identifies weights and preprocessing, for caches and job keys.
    """

    model: SamModel
    processor: Any
    digest: str

    def embed(self, images: Sequence[Image.Image], *, with_grad: bool = False) -> ImageEmbeddings:
        """Encode images of any sizes, 8-bit grey or colour; gradients reach the encoder only if asked.

        Raises:
            RequestError: no images, or what no tower reads: 16 bits, a strip.
        """
        if not images:
            raise RequestError("No images", "There is nothing to encode", "Give at least one")
        for place, image in enumerate(images):
            check_image(image, f"Image {place}")
        seen = self.processor([in_colour(image) for image in images], return_tensors="pt")
        with torch.set_grad_enabled(with_grad):
            features = self.model.vision_encoder(
                seen.pixel_values.to(self.model.device, self.model.dtype)
            ).last_hidden_state
        return ImageEmbeddings(features, seen.original_sizes.tolist(), seen.reshaped_input_sizes.tolist())

    def encode_prompts(
        self,
        embeddings: ImageEmbeddings,
        *,
        points: Float[Tensor, "n p 2"] | None = None,
        labels: Int[Tensor, "n p"] | None = None,
        boxes: Float[Tensor, "n 4"] | None = None,
        masks: Float[Tensor, "n h w"] | None = None,
        image_of: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "n s d"], Float[Tensor, "n d h w"]]:
        """Embed n prompts, each of which is its points, its box and its coarse mask, as far as they are there.

        Args:
            embeddings: of the images.
            points: x, y as fractions of the image.
            labels: of the points: 1 on the object, 0 off it, -1 for no point, where a prompt has fewer than others; SAM
                reads that as a prompt of its own, so a mask differs a little from that of the points alone.
            boxes: x0, y0, x1, y1 as fractions of the image, half-open.
            masks: logits, such as `Masks.low_res_logits[:, 0]`.
            image_of: index of the image of each prompt; None where there is one image.

        Returns:
            Sparse embeddings, one a point and two a box (none for masks alone), and dense ones, for `decode`.

        Raises:
            RequestError: no prompt, numbers of prompts or labels that differ, places outside the image, other labels.
        """
        encoder, places = self.model.prompt_encoder, None if points is None else points.shape[1]
        side = 4 * encoder.image_embedding_size[0]
        shapes = {"points": (places, 2), "labels": (places,), "boxes": (4,), "masks": (side, side)}
        prompts = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        n = _count(prompts, shapes)
        if (points is None) != (labels is None) or (labels is not None and not (labels.abs() <= 1).all()):
            raise RequestError(
                f"points is {_shape(points)}, labels is {None if labels is None else labels.tolist()}",
                "Each point has a label: 1 on the object, 0 off it, -1 for no point",
                "Give both, with those labels",
            )
        if points is not None and not (is_inside := (points >= 0) & (points <= 1)).all():
            raise RequestError(
                f"points holds {float(points[~is_inside][0])}",
                "That lies outside the image",
                "Give x, y as fractions of the image, 0 to 1",
            )
        for place, box in enumerate([] if boxes is None else boxes.tolist()):
            check_box(Box(*box), where=f"boxes, row {place}")
        device = embeddings.features.device
        frames_hw = torch.tensor(embeddings.frame_hw, dtype=torch.float64, device=device)
        frames_wh = frames_hw[_images(image_of, n, embeddings)].flip(-1)[:, None]  # n 1 2
        sparse, dense = encoder(
            None if points is None else (points.to(device) * frames_wh)[:, None],
            None if labels is None else labels.to(device)[:, None],
            None if boxes is None else (boxes.to(device).view(n, 2, 2) * frames_wh).view(n, 1, 4),
            None if masks is None else masks.to(embeddings.features)[:, None],
        )
        return dense.new_zeros(n, 0, dense.shape[1]) if sparse is None else sparse[:, 0], dense

    def decode(
        self,
        embeddings: ImageEmbeddings,
        sparse: Float[Tensor, "n s d"] | None,
        dense: Float[Tensor, "n d h w"] | None = None,
        *,
        image_of: Sequence[int] | None = None,
        several: bool = False,
    ) -> Masks:
        """Decode the masks of n prompts at once, with the gradients that its inputs and the decoder have.

        Args:
            embeddings: of the images.
            sparse: from `encode_prompts`, a caller's own, or both, joined along s; None for none.
            dense: from `encode_prompts` or a caller's own; None is what SAM has learned for no coarse mask.
            image_of: index of the image of each prompt; None where there is one image.
            several: three masks a prompt, for one that could mean several things.

        Raises:
            RequestError: no prompt, numbers of prompts that differ, or embeddings of another model.
        """
        width, *grid = embeddings.features.shape[1:]
        shapes = {"sparse": (None, width), "dense": (width, *grid)}
        n = _count({"sparse": sparse, "dense": dense}, shapes)
        rows = _images(image_of, n, embeddings)
        no_mask = self.model.prompt_encoder.no_mask_embed.weight.view(1, width, 1, 1)
        # n images with a prompt each, where SAM takes an image with n prompts: so each may have a mask of its own
        low_res, iou = self.model.mask_decoder(
            image_embeddings=embeddings.features[rows],
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings().expand(n, -1, -1, -1),
            sparse_prompt_embeddings=None if sparse is None else sparse[:, None],
            dense_prompt_embeddings=no_mask if dense is None else dense,
            multimask_output=several,
        )  # n 1 c h w, n 1 c
        sizes = ([hw[row] for row in rows] for hw in (embeddings.image_hw, embeddings.frame_hw))
        logits = self.processor.post_process_masks(low_res, *sizes, binarize=False)
        return Masks([mask[0] for mask in logits], low_res[:, 0], iou[:, 0])


def load_segmenter(name: str, revision: str = "") -> Segmenter:
    """Load a SAM in float32 on the CPU; its parameters can be trained, but for the table of positions.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.

    Raises:
        RequestError: not there, no SAM, without safetensors or preprocessing, or weights that do not fit their config.
    """
    place = weights.locate(name, revision=revision, key=KEY)
    shared: dict[str, Any] = {"trust_remote_code": False, "revision": place.revision or "main"}
    model_type = PreTrainedConfig.get_config_dict(place.source, **shared)[0].get("model_type")
    request = f"{KEY} is '{name}', a {model_type or 'model without model_type'}"
    if model_type not in CLASSES:
        why = f"The segmenters known here are {', '.join(CLASSES)}"
        raise RequestError(request, why, "Use a SAM in the layout of transformers")
    processor = image_processor(place, request)
    with quiet_loading():
        loaded: Any = CLASSES[model_type].from_pretrained(
            place.source,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named and refused below
            **shared,
        )
    model, loading_info = loaded
    check_tensors(loading_info, CLASSES[model_type].__name__, request, may_hold_more=True)
    model.shared_image_embedding.requires_grad_(False)  # constants, which only transformers holds as a parameter
    return Segmenter(model.eval(), processor, weights.digest_of(name, revision=revision, key=KEY))


def _count(prompts: Mapping[str, Tensor | None], shapes: Mapping[str, tuple[int | None, ...]]) -> int:
    """How many prompts there are, once all that is given has a row for each, of its shape; None is any size."""
    rows = {name: tensor for name, tensor in prompts.items() if tensor is not None}
    if not any(len(tensor) for tensor in rows.values()):
        raise RequestError(
            f"No prompt: {' and '.join(prompts)} are None or empty",
            "A segmenter must be told what to cut out",
            "Give one of them",
        )
    n = len(next(iter(rows.values())))
    for name, tensor in rows.items():
        wanted = (n, *shapes[name])
        sizes = zip(wanted, tensor.shape, strict=True) if len(wanted) == tensor.ndim else [(1, 0)]
        if any(want not in (None, size) for want, size in sizes):
            text = ", ".join("any" if want is None else str(want) for want in wanted)
            raise RequestError(
                f"{name} is {_shape(tensor)}",
                f"With {n} prompts for this model its shape is ({text})",
                "Give a row for each prompt, made for this model",
            )
    return n


def _shape(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"of shape {tuple(tensor.shape)}"


def _images(image_of: Sequence[int] | None, n: int, embeddings: ImageEmbeddings) -> list[int]:
    """Index of the image of each of n prompts."""
    images = len(embeddings.image_hw)
    rows = [0] * n if image_of is None and images == 1 else list(image_of or ())
    if len(rows) != n or not all(0 <= row < images for row in rows):
        raise RequestError(
            f"image_of is {image_of}, with {n} prompts and {images} images",
            "Each prompt is about one of the images",
            f"Give {n} indices from 0 to {images - 1}",
        )
    return rows
