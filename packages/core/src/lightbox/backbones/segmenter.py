"""SAM or SAM 2 in two calls: images are embedded once, masks are decoded for any number of prompts.

A prompt says what to cut out: points, a box, a coarse mask, or embeddings that a caller made itself, such as a language
model's state. Places are fractions of the image, as everywhere. SAM-Med2D is read as `lightbox data convert` writes it,
SAM 2 as it was published, with the calls of `segmenter_sam2`; SAM-HQ is another layout and is not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, Sam2Model, SamModel

from lightbox.backbones import weights
from lightbox.backbones.conversation import check_image, in_colour
from lightbox.backbones.matching import check_tensors
from lightbox.backbones.sam_adapters import AdaptedSamConfig, AdaptedSamModel
from lightbox.backbones.segmenter_sam2 import Pixels, Sam2Layout
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.towers import image_processor
from lightbox.errors import RequestError
from lightbox.records import Box, check_box

KEY = "model.segmenter"
"""Config key that gives the name, for messages."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """Images as a segmenter's encoder sees them.

    Args:
        features: on the model's device.
        image_hw: rows and columns of each image.
        frame_hw: those that each image has in the square that was encoded; the rest of the square is filling.
        finer: features of SAM 2 at two and four times the resolution, with fewer channels; SAM has none.
    """

    features: Float[Tensor, "b d h w"]
    image_hw: list[list[int]]
    frame_hw: list[list[int]]
    finer: tuple[Float[Tensor, "b _ _ _"], ...] = ()

    @property
    def nbytes(self) -> int:
        """Of all features."""
        return sum(features.nbytes for features in (self.features, *self.finer))


@dataclass(frozen=True)
class Masks:
    """Masks of n prompts: one each, or three where several were asked for.

    Args:
        logits: for each prompt c h w, at the size of its image; above 0 is inside.
        low_res_logits: of the whole square, at a quarter of its side; a coarse mask for a next round of prompts.
        iou: the decoder's own estimate of each mask's overlap with what was meant.
        object_logit: SAM 2's estimate that what was meant is there, above 0 for yes; None of SAM.
    """

    logits: list[Float[Tensor, "c h w"]]
    low_res_logits: Float[Tensor, "n c h w"]
    iou: Float[Tensor, "n c"]
    object_logit: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class SamLayout:
    """SAM as `Segmenter` calls it; arguments and results as in `Sam2Layout`.

    An image keeps its shape and is filled up to the square; its features have one resolution.
    """

    model_class: ClassVar[type[SamModel]] = SamModel
    n_finer: ClassVar = 0
    model: SamModel
    processor: Any

    @property
    def square_hw(self) -> tuple[int, int]:
        """Rows and columns of what the processor makes of an image."""
        return self.processor.pad_size.height, self.processor.pad_size.width

    def pixels(self, images: Sequence[Image.Image]) -> Pixels:
        """Colour images, each at the top left of its square."""
        seen = self.processor(list(images), return_tensors="pt")
        return seen.pixel_values, seen.original_sizes.tolist(), seen.reshaped_input_sizes.tolist()

    def encode(self, pixel_values: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Features, at one resolution."""
        return [self.model.vision_encoder(pixel_values).last_hidden_state]

    def embed_prompts(
        self,
        points: Float[Tensor, "n 1 p 2"] | None,
        labels: Int[Tensor, "n 1 p"] | None,
        boxes: Float[Tensor, "n 1 4"] | None,
        masks: Float[Tensor, "n 1 h w"] | None,
    ) -> tuple[Float[Tensor, "n 1 s d"] | None, Float[Tensor, "n d h w"]]:
        """Sparse and dense embeddings; no sparse ones for masks alone."""
        return self.model.prompt_encoder(points, labels, boxes, masks)

    def decode(
        self,
        maps: Sequence[Float[Tensor, "n _ _ _"]],
        sparse: Float[Tensor, "n 1 s d"] | None,
        dense: Float[Tensor, "_ d _ _"],
        *,
        several: bool,
        fallback: bool,
    ) -> tuple[Float[Tensor, "n 1 c h w"], Float[Tensor, "n 1 c"], Float[Tensor, "n 1 1"] | None]:
        """Logits of the square and estimates of their overlap; it has no other head to fall back to."""
        del fallback
        (features,) = maps
        positions = self.model.get_image_wide_positional_embeddings().expand(len(features), -1, -1, -1)
        low_res, iou = self.model.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )
        return low_res, iou, None

    def to_images(
        self, low_res: Float[Tensor, "n 1 c h w"], image_hw: list[list[int]], frame_hw: list[list[int]]
    ) -> list[Float[Tensor, "1 c _ _"]]:
        """Logits at the size of each image, without the filling."""
        return self.processor.post_process_masks(low_res, image_hw, frame_hw, binarize=False)


class AdaptedSamLayout(SamLayout):
    """SAM-Med2D: SAM with adapters in its encoder."""

    model_class = AdaptedSamModel


LAYOUTS: dict[str, type[SamLayout | Sam2Layout]] = {
    "sam": SamLayout,
    AdaptedSamConfig.model_type: AdaptedSamLayout,
    "sam2": Sam2Layout,
    "sam2_video": Sam2Layout,  # as SAM 2 is published; the image model is a part of it
}


@dataclass(frozen=True)
class Segmenter:
    """A SAM or a SAM 2.

    Args:
        layout: how its class of transformers is called.
        digest: identifies weights and preprocessing, for caches and job keys.
    """

    layout: SamLayout | Sam2Layout
    digest: str

    @property
    def model(self) -> SamModel | Sam2Model:
        """Of transformers, loaded in evaluation mode."""
        return self.layout.model

    def embed(self, images: Sequence[Image.Image], *, with_grad: bool = False) -> ImageEmbeddings:
        """Encode images of any sizes, 8-bit grey or colour; gradients reach the encoder only if asked.

        Raises:
            RequestError: no images, or what no tower reads: 16 bits, a strip.
        """
        if not images:
            raise RequestError("No images", "There is nothing to encode", "Give at least one")
        for place, image in enumerate(images):
            check_image(image, f"Image {place}")
        pixel_values, image_hw, frame_hw = self.layout.pixels([in_colour(image) for image in images])
        with torch.set_grad_enabled(with_grad):
            features, *finer = self.layout.encode(pixel_values.to(self.model.device, self.model.dtype))
        return ImageEmbeddings(features, image_hw, frame_hw, tuple(finer))

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
            Sparse embeddings, one a point and two a box (none for masks alone), and dense ones, for `decode`. SAM 2
            ends all with an empty point, as SAM does points without a box, and has two of them for masks alone.

        Raises:
            RequestError: no prompt, numbers of prompts or labels that differ, places outside the image, other labels.
        """
        places = None if points is None else points.shape[1]
        side = 4 * self.model.prompt_encoder.image_embedding_size[0]
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
        sparse, dense = self.layout.embed_prompts(
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
        fallback: bool = True,
    ) -> Masks:
        """Decode the masks of n prompts at once, with the gradients that its inputs and the decoder have.

        Args:
            embeddings: of the images.
            sparse: from `encode_prompts`, a caller's own, or both, joined along s; None for none.
            dense: from `encode_prompts` or a caller's own; None is what SAM has learned for no coarse mask.
            image_of: index of the image of each prompt; None where there is one image.
            several: three masks a prompt, for one that could mean several things.
            fallback: where one mask is asked for and its edge is vague, SAM 2 in evaluation mode gives the likeliest of
                the three instead; False for a decoder that was trained on one mask, whose other heads were not. SAM
                has none.

        Raises:
            RequestError: no prompt, numbers of prompts that differ, or embeddings of another model.
        """
        width, *grid = embeddings.features.shape[1:]
        shapes = {"sparse": (None, width), "dense": (width, *grid)}
        n = _count({"sparse": sparse, "dense": dense}, shapes)
        rows = _images(image_of, n, embeddings)
        if len(embeddings.finer) != self.layout.n_finer:
            raise RequestError(
                f"Images were embedded at {1 + len(embeddings.finer)} resolutions",
                f"The decoder of {self.layout.model_class.__name__} reads {1 + self.layout.n_finer}",
                "Embed them with this segmenter",
            )
        no_mask = self.model.prompt_encoder.no_mask_embed.weight.view(1, width, 1, 1)
        # n images with a prompt each, where SAM takes an image with n prompts: so each may have a mask of its own
        low_res, iou, object_logit = self.layout.decode(
            [features[rows] for features in (embeddings.features, *embeddings.finer)],
            None if sparse is None else sparse[:, None],
            no_mask if dense is None else dense,
            several=several,
            fallback=fallback,
        )
        sizes = ([hw[row] for row in rows] for hw in (embeddings.image_hw, embeddings.frame_hw))
        logits = self.layout.to_images(low_res, *sizes)
        objects = None if object_logit is None else object_logit[:, 0, 0]
        return Masks([mask[0] for mask in logits], low_res[:, 0], iou[:, 0], objects)


def load_segmenter(name: str, revision: str = "") -> Segmenter:
    """Load a SAM or a SAM 2 in float32 on the CPU; its parameters can be trained, but for the table of positions.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.

    Raises:
        RequestError: not there, no SAM, without safetensors or preprocessing, weights that do not fit their config, or
            preprocessing of another size.
    """
    place = weights.locate(name, revision=revision, key=KEY)
    shared: dict[str, Any] = {"trust_remote_code": False, "revision": place.revision or "main"}
    model_type = PreTrainedConfig.get_config_dict(place.source, **shared)[0].get("model_type")
    request = f"{KEY} is '{name}', a {model_type or 'model without model_type'}"
    if model_type not in LAYOUTS:
        why = f"The segmenters known here are {', '.join(LAYOUTS)}"
        raise RequestError(request, why, "Use a SAM in the layout of transformers")
    layout_class, processor = LAYOUTS[model_type], image_processor(place, request)
    with quiet_loading():
        loaded: Any = layout_class.model_class.from_pretrained(
            place.source,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named and refused below
            **shared,
        )
    model, loading_info = loaded
    # more than it reads: the memory of SAM 2's video model
    check_tensors(loading_info, layout_class.model_class.__name__, request, may_hold_more=True)
    model.shared_image_embedding.requires_grad_(False)  # constants, which only transformers' SAM holds as a parameter
    layout, side = layout_class(model.eval(), processor), model.prompt_encoder.input_image_size
    if layout.square_hw != (side, side):
        raise RequestError(
            f"{request}, whose images are made {' x '.join(map(str, layout.square_hw))} px",
            f"It reads {side} x {side}: prompts would be about other places than features",
            "Use the preprocessing that was published with the weights",
        )
    return Segmenter(layout, weights.digest_of(name, revision=revision, key=KEY))


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
